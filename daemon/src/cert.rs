//! `lapis cert`: a private authority and certificates of hosts, enough to try out peers on one machine or on several.
//!
//! Invariant: nothing is written over without `--force`, and nothing is written that a daemon would not take.

use std::{
    fs::{self, Permissions},
    io::{ErrorKind, Write},
    net::{IpAddr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    str::FromStr,
    time::{Duration, SystemTime},
};

use anyhow::{Context, bail, ensure};
use clap::{Args, Subcommand};
use lapis_transport::peers::tls::{self, Identity, IdentityFiles, TlsError};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use tempfile::NamedTempFile;

const DAY: Duration = Duration::from_secs(86_400);
/// A host whose clock is behind by less than this takes a certificate that was just made.
const CLOCKS_APART: Duration = DAY;
const PORT: u16 = 7450;

#[derive(Subcommand, Clone, Debug)]
pub enum CertCommand {
    /// Make an authority: DIR/ca.pem, which every host gets, and DIR/ca.key, with which hosts' certificates are made
    Ca(CaArgs),
    /// Make a key and a certificate for each host, signed by the authority, and print their [peers] lines
    Host(HostArgs),
}

#[derive(Args, Clone, Debug)]
pub struct CaArgs {
    /// Folder to write to; made if it is not there
    #[arg(long, value_name = "DIR", default_value = "lapis-certs")]
    out: PathBuf,
    /// How long it is valid
    #[arg(long, value_name = "DAYS", default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Replace an authority that is there: the certificates that it has signed are worth nothing then
    #[arg(long)]
    force: bool,
}

#[derive(Args, Clone, Debug)]
pub struct HostArgs {
    /// Hosts as their configurations call them (peers.host), each with the address at which the others reach it if that is
    /// known: host-a=10.0.0.1
    #[arg(value_name = "NAME[=IP]", required = true)]
    hosts: Vec<HostAsked>,
    /// Folder of the authority, as `lapis cert ca` has made it
    #[arg(long, value_name = "DIR", default_value = "lapis-certs")]
    ca: PathBuf,
    /// Folder to write to, made if it is not there; without it that of the authority
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// How long they are valid
    #[arg(long, value_name = "DAYS", default_value_t = 365, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Replace keys and certificates that are there
    #[arg(long)]
    force: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct HostAsked {
    name: String,
    ip: Option<IpAddr>,
}

impl FromStr for HostAsked {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, ip) = text.split_once('=').map_or((text, None), |(name, ip)| (name, Some(ip)));
        let name = lapis_config::host_name(name).ok_or_else(|| {
            format!("{name:?} is not a host's name, like host-a: letters, digits, - and _, with dots between parts")
        })?;
        let ip =
            ip.map(|ip| ip.parse().map_err(|_| format!("{ip:?} is not an IP address (the port is peers.listen's)")));
        Ok(Self { name, ip: ip.transpose()? })
    }
}

/// Where each host listens, and where others find it: by its name, if no address is known. Several on one address, as
/// when peers are tried out on one machine, have a port each.
fn places(hosts: &[HostAsked]) -> Vec<(String, String)> {
    let place = |(at, host): (usize, &HostAsked)| {
        let before = hosts[..at].iter().filter(|other| other.ip.is_some() && other.ip == host.ip).count();
        let port = PORT + before as u16;
        match host.ip {
            Some(ip) => (SocketAddr::new(ip, port).to_string(), SocketAddr::new(ip, port).to_string()),
            None => (format!("0.0.0.0:{port}"), format!("{}:{port}", host.name)),
        }
    };
    hosts.iter().enumerate().map(place).collect()
}

pub fn run(command: &CertCommand) -> anyhow::Result<()> {
    match command {
        CertCommand::Ca(args) => make_authority(args),
        CertCommand::Host(args) => make_hosts(args),
    }
}

fn make_authority(args: &CaArgs) -> anyhow::Result<()> {
    let folder = folder(&args.out)?;
    let (certificate, key) = (folder.join("ca.pem"), folder.join("ca.key"));
    refuse_existing(&[&certificate, &key], args.force, "the certificates that it has signed would be worth nothing")?;
    let pair = KeyPair::generate().context("no key could be made")?;
    let mut params = authority(&pair);
    let ends = valid(&mut params, args.days)?;
    let made = params.self_signed(&pair).context("no certificate could be made")?;
    // The key last: with it, both are there.
    let written = Written::new(&folder, &[(&certificate, made.pem(), 0o644), (&key, pair.serialize_pem(), 0o600)])?;
    written.keep(args.force)?;
    println!(
        "{}: the authority's certificate, valid until {ends}; every host gets a copy\n\
         {}: its key; keep it here alone, as who has it can make any host\n\
         next: lapis cert host host-a host-b{}",
        certificate.display(),
        key.display(),
        if args.out == Path::new("lapis-certs") { String::new() } else { format!(" --ca {}", args.out.display()) },
    );
    Ok(())
}

/// What names an authority is its key alone, so that a certificate is signed with nothing but that at hand.
fn authority(key: &KeyPair) -> CertificateParams {
    let mut params = CertificateParams::default();
    let print = blake3::hash(key.public_key_raw()).to_hex();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, format!("Lapis authority {}", &print[..8]));
    // Of hosts alone, not of further authorities.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

/// From now on, for so many days; the last one.
fn valid(params: &mut CertificateParams, days: u32) -> anyhow::Result<String> {
    let now = SystemTime::now();
    let ends = now + days * DAY;
    let last = tls::day(ends);
    // Certificates name years of four digits.
    ensure!(
        last.len() == "9999-12-31".len(),
        "{days} days from now is after the year 9999: is this machine's clock right?"
    );
    (params.not_before, params.not_after) = ((now - CLOCKS_APART).into(), ends.into());
    Ok(last)
}

fn make_hosts(args: &HostArgs) -> anyhow::Result<()> {
    for (at, host) in args.hosts.iter().enumerate() {
        ensure!(host.name != "ca", "a host called \"ca\" would have the authority's files: call it otherwise");
        ensure!(!args.hosts[..at].iter().any(|other| other.name == host.name), "host {:?} is given twice", host.name);
    }
    let (authority_file, key_file) = (args.ca.join("ca.pem"), args.ca.join("ca.key"));
    let read = |path: &Path| {
        fs::read_to_string(path).with_context(|| {
            format!(
                "{} cannot be read: make an authority with `lapis cert ca`, or say where it is with --ca",
                path.display()
            )
        })
    };
    read(&authority_file)?;
    let pair = KeyPair::from_pem(&read(&key_file)?)
        .map_err(|error| anyhow::anyhow!("{} holds no private key that can be used: {error}", key_file.display()))?;
    let params = authority(&pair);
    let issuer = Issuer::from_params(&params, pair);

    let folder = folder(args.out.as_ref().unwrap_or(&args.ca))?;
    let paths: Vec<(PathBuf, PathBuf)> = args
        .hosts
        .iter()
        .map(|host| (folder.join(format!("{}.pem", host.name)), folder.join(format!("{}.key", host.name))))
        .collect();
    let all: Vec<&PathBuf> = paths.iter().flat_map(|(certificate, key)| [certificate, key]).collect();
    refuse_existing(&all, args.force, "a daemon may use them")?;
    let made: Vec<(Written, String)> = args
        .hosts
        .iter()
        .zip(&paths)
        .map(|(host, (certificate, key))| make_host(host, args, &issuer, &folder, certificate, key))
        .collect::<Result<_, _>>()?;
    let ends = made.last().map(|(_, ends)| ends.clone()).expect("there is a host");
    made.into_iter().try_for_each(|(written, _)| written.keep(args.force))?;

    let authority_file = fs::canonicalize(&authority_file).context("the authority's certificate is gone")?;
    println!(
        "valid until {ends}; a host needs its two files and the authority's certificate, and these lines (with the"
    );
    println!("paths that the files have there) in its configuration:");
    let places = places(&args.hosts);
    let member =
        |(host, (_, found_at)): (&HostAsked, &(String, String))| format!("{:?}", format!("{}={found_at}", host.name));
    let members: Vec<String> = args.hosts.iter().zip(&places).map(member).collect();
    for ((host, (listen, _)), (certificate, key)) in args.hosts.iter().zip(&places).zip(&paths) {
        println!(
            "\n# {}\n[peers]\nlisten = {listen:?}\nhost = {:?}\nmembers = [{}]\nca = {:?}\ncertificate = {:?}\nkey = {:?}",
            host.name,
            host.name,
            members.join(", "),
            authority_file.display().to_string(),
            certificate.display().to_string(),
            key.display().to_string(),
        );
    }
    Ok(())
}

fn make_host(
    host: &HostAsked,
    args: &HostArgs,
    issuer: &Issuer<'_, KeyPair>,
    folder: &Path,
    certificate: &Path,
    key: &Path,
) -> anyhow::Result<(Written, String)> {
    let no_certificate = || format!("no certificate could be made for {:?}", host.name);
    let mut params = CertificateParams::new(vec![host.name.clone()]).with_context(no_certificate)?;
    params.subject_alt_names.extend(host.ip.map(SanType::IpAddress));
    params.distinguished_name = rcgen::DistinguishedName::new();
    // A common name has at most 64 bytes; what counts are the names above.
    let name: String = host.name.chars().take(64).collect();
    params.distinguished_name.push(DnType::CommonName, name);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    let ends = valid(&mut params, args.days)?;
    let pair = KeyPair::generate().context("no key could be made")?;
    let made = params.signed_by(&pair, issuer).with_context(no_certificate)?;
    let files = [(certificate, made.pem(), 0o644), (key, pair.serialize_pem(), 0o600)];
    let written = Written::new(folder, &files)?;
    let files = IdentityFiles {
        authority: args.ca.join("ca.pem"),
        certificate: written.0[0].0.path().into(),
        key: written.0[1].0.path().into(),
    };
    match Identity::load(&files, &host.name) {
        Ok(_) => Ok((written, ends)),
        Err(TlsError::Refused { .. }) => bail!(
            "{} was not made with {} by `lapis cert ca`: certificates that this key signs would be refused",
            files.authority.display(),
            args.ca.join("ca.key").display()
        ),
        Err(error) => Err(error.into()),
    }
}

/// The folder with its whole path; its parents are somebody else's to make.
fn folder(path: &Path) -> anyhow::Result<PathBuf> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => {
            return Err(error).with_context(|| format!("{} cannot be made", path.display()));
        }
        _ => {}
    }
    let whole = fs::canonicalize(path).with_context(|| format!("{} cannot be looked at", path.display()))?;
    ensure!(whole.is_dir(), "{} is no folder", path.display());
    Ok(whole)
}

fn refuse_existing(paths: &[impl AsRef<Path>], force: bool, why: &str) -> anyhow::Result<()> {
    let existing = paths.iter().map(AsRef::as_ref).find(|path| fs::symlink_metadata(path).is_ok());
    match existing.filter(|_| !force) {
        Some(path) => {
            bail!("{} is there already, and {why}: replace it with --force, or choose another --out", path.display())
        }
        None => Ok(()),
    }
}

/// Files under names of their own, gone again unless they are kept.
struct Written(Vec<(NamedTempFile, PathBuf)>);

impl Written {
    fn new(folder: &Path, files: &[(&Path, String, u32)]) -> anyhow::Result<Self> {
        let write = |(path, text, mode): &(&Path, String, u32)| {
            let mut file = NamedTempFile::new_in(folder)?;
            // Nobody else could open it before.
            file.write_all(text.as_bytes())?;
            file.as_file().set_permissions(Permissions::from_mode(*mode))?;
            file.as_file().sync_all()?;
            Ok((file, path.to_path_buf()))
        };
        let written: std::io::Result<_> = files.iter().map(write).collect();
        Ok(Self(written.with_context(|| format!("{} cannot be written to", folder.display()))?))
    }

    /// Each in one step: who reads meanwhile sees the old or the new one.
    fn keep(self, force: bool) -> anyhow::Result<()> {
        for (file, path) in self.0 {
            let kept = if force { file.persist(&path) } else { file.persist_noclobber(&path) };
            kept.map_err(|error| error.error).with_context(|| format!("{} cannot be written", path.display()))?;
        }
        Ok(())
    }
}
