//! Defaults, sources, what is shown of them, and the example file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Command, FromArgMatches};
use lapis_config::{
    ConfigFile, Effective, Flags, LoadInput, Machine, Options, Source, SsdEngine, Tables, example, lines,
};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

fn load(text: Option<&str>, env: &[(&str, &str)], flags: Flags) -> Effective {
    let input = LoadInput {
        file: text.map(|text| ConfigFile::Text(PathBuf::from("f"), text.into())),
        env: env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        flags: flags.0,
        machine: Machine {
            memory_bytes: Some(64 * GIB),
            runtime_folder: Some(true),
            user_runtime_folder: None,
            host_name: Some("Host-A".into()),
        },
    };
    Options::load(&input).unwrap_or_else(|errors| panic!("{errors}"))
}

fn flags(words: &[&str]) -> Flags {
    let command = Flags::augment_args(Command::new("lapis"));
    let matches = command.try_get_matches_from(["lapis"].iter().chain(words)).expect("known flags");
    Flags::from_arg_matches(&matches).expect("texts")
}

#[test]
fn defaults_run_without_a_file() {
    let effective = load(None, &[], Flags::default());
    let options = &effective.options;
    assert_eq!((options.dram_bytes, options.index_entries_max), (4 * GIB, 65536));
    assert_eq!((options.client_magazine_bytes_max, options.client_pin_bytes_max), (64 * MIB, GIB));
    assert_eq!((options.client_put_deadline, options.server_clients_max), (Duration::from_secs(1), 256));
    let [group] = &options.groups[..] else { panic!("one group") };
    assert_eq!(
        (group.name.as_str(), group.dram_floor, group.dram_ceiling, group.may_put),
        ("default", 0, 4 * GIB, true)
    );
    assert_eq!(group.socket, Path::new("/run/lapis/lapis.sock"));
    assert!(group.admits(4711), "everyone who may open the socket");
    assert!(effective.notes.is_empty());
}

#[test]
fn a_flag_beats_a_variable_beats_the_file_beats_the_default() {
    let text = "[dram]\nbytes = \"1GiB\"\n\n[server]\nclients_max = 7\n[log]\nlevel = \"warn\"\n";
    let env = [("LAPIS_DRAM_BYTES", "2GiB"), ("LAPIS_SERVER_CLIENTS_MAX", "8"), ("PATH", "/bin")];
    let effective = load(Some(text), &env, flags(&["--dram-bytes", "3GiB", "--metrics-public"]));
    let options = &effective.options;
    assert_eq!((options.dram_bytes, options.server_clients_max, options.metrics_public), (3 * GIB, 8, true));
    let file = Source::File { path: "f".into(), line: 7 };
    assert_eq!(effective.source("dram.bytes"), Source::Flag("--dram-bytes".into()));
    assert_eq!(effective.source("server.clients_max"), Source::Variable("LAPIS_SERVER_CLIENTS_MAX".into()));
    assert_eq!((effective.source("log.level"), effective.source("verify")), (file, Source::Default));
    let shown = effective.render(1 << 20);
    for line in ["dram.bytes \"3GiB\" --dram-bytes", "log.level \"warn\" f:7", "verify \"auto\" default"] {
        let squeezed: Vec<String> = shown.lines().map(|l| l.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
        assert!(squeezed.iter().any(|shown| shown == line), "{line:?} is not in\n{shown}");
    }
}

#[test]
fn groups_share_memory_and_table() {
    let text = "[dram]\nbytes = \"8GiB\"\n[[group]]\nname = \"chat\"\nsocket = \"/s/chat\"\nuids = [1000, 1001]\n\
                dram_floor = \"1GiB\"\ndram_ceiling = \"2GiB\"\n\
                [[group]]\nname = \"batch\"\nsocket = \"/s/batch\"\nmay_put = false\n";
    let effective = load(Some(text), &[], Flags::default());
    let [chat, batch] = &effective.options.groups[..] else { panic!("two groups") };
    assert!(chat.admits(1001) && !chat.admits(0) && !batch.may_put);
    assert_eq!((chat.dram_floor, chat.dram_ceiling, batch.dram_ceiling), (GIB, 2 * GIB, 8 * GIB));
    assert_eq!(chat.entries_max(&effective.options), 131_072 / 4);
    let tables = Tables::of(&effective.options, chat, 1000);
    assert_eq!(tables.lines, 40960);
    assert_eq!((tables.table_bytes, tables.entries_bytes), (40960 * 64 + 4096, 40960 * 32));
    assert_eq!((tables.slots_bytes, tables.controls_bytes), (2 * GIB / 4096 * 8, 256_000));
    assert_eq!((lines(4), lines(5), lines(1)), (5, 7, 2));
    let shown = effective.render(1000);
    assert!(shown.contains("tables of group chat:") && shown.contains("group[1].may_put"), "{shown}");
}

#[test]
fn an_ssd_tier_makes_a_larger_table_and_its_words_are_read_from_everywhere() {
    let text = "[dram]\nbytes = \"4GiB\"\n[ssd]\npaths = [\"/dev/nvme0n1\", \"/data/a,b\"]\nbytes = \"30GiB\"\n\
                engine = \"threads\"\nrequired = false\nlist_after = \"50ms\"\ninstance = \"left\"";
    let effective = load(Some(text), &[], Flags::default());
    let options = &effective.options;
    assert_eq!(options.ssd_paths, [Path::new("/dev/nvme0n1"), Path::new("/data/a,b")]);
    assert_eq!((options.ssd_engine, options.ssd_required), (SsdEngine::Threads, false));
    assert_eq!((options.ssd_list_after, options.ssd_instance.as_str()), (Duration::from_millis(50), "left"));
    assert_eq!((options.ssd_queue_depth, options.ssd_threads, options.ssd_durable), (128, 32, false));
    assert_eq!(options.ssd_write_back_ahead, 256 * MIB);
    assert_eq!((options.ssd_bytes_of_files(), options.index_entries_max), (60 * GIB, 64 * GIB / (64 << 10)));
    assert!(effective.notes.is_empty(), "{:?}", effective.notes);
    let shown = effective.render(1000);
    assert!(shown.contains("[\"/dev/nvme0n1\", \"/data/a,b\"]") && shown.contains("960 segments"), "{shown}");
    let env = [("LAPIS_SSD_PATHS", "/a, /b")];
    assert_eq!(load(None, &env, Flags::default()).options.ssd_paths, [Path::new("/a"), Path::new("/b")]);
    let given = flags(&["--ssd-paths", "/c", "--ssd-required=false", "--ssd-durable"]);
    let options = load(Some(text), &env, given).options;
    assert_eq!((options.ssd_paths, options.ssd_durable), (vec![PathBuf::from("/c")], true));
    let given = flags(&["--ssd-paths", "[]"]);
    assert!(load(Some(text), &env, given).options.ssd_paths.is_empty(), "a flag turns the tier off");
}

#[test]
fn controllers_are_paths_in_one_spelling_under_auto_and_spdk() {
    for engine in ["auto", "spdk"] {
        let text = format!(
            "[ssd]\npaths = [\"pci:E1:00.0\", \"pci:0000:65:00.0/2\"]\nengine = \"{engine}\"\nspdk_library = \"/l\""
        );
        let options = load(Some(&text), &[], Flags::default()).options;
        assert_eq!(options.ssd_paths, [Path::new("pci:0000:e1:00.0"), Path::new("pci:0000:65:00.0/2")]);
        assert_eq!(options.ssd_spdk_library.as_deref(), Some(Path::new("/l")));
    }
    assert_eq!(load(None, &[], Flags::default()).options.ssd_spdk_library, None);
}

#[test]
fn a_group_keeps_its_share_clean() {
    let text = "[dram]\nbytes = \"8GiB\"\n[ssd]\npaths = [\"/x\"]\nwrite_back_ahead = \"1GiB\"\n\
                [[group]]\nname = \"a\"\nsocket = \"/s/a\"\ndram_ceiling = \"2GiB\"";
    let options = load(Some(text), &[], Flags::default()).options;
    assert_eq!(options.groups[0].write_back_ahead(&options), 256 * MIB);
}

#[test]
fn groups_share_what_is_remembered_and_what_may_be_written_by_their_ceilings() {
    let text = "[dram]\nbytes = \"8GiB\"\n[index]\nghost_bytes = \"10MiB\"\n[ssd]\nwrite_budget = \"10TB/day\"\npaths = [\"/x\"]\n\
                [[group]]\nname = \"a\"\nsocket = \"/s/a\"\ndram_ceiling = \"2GiB\"\n\
                [[group]]\nname = \"b\"\nsocket = \"/s/b\"";
    let options = load(Some(text), &[], Flags::default()).options;
    let shares: Vec<_> =
        options.groups.iter().map(|of| (of.ghost_bytes(&options), of.write_budget(&options))).collect();
    let terabyte = 1_000_000_000_000;
    assert_eq!(shares, [(2 * MIB, Some(2 * terabyte)), (8 * MIB, Some(8 * terabyte))], "no more than all together");
    let alone = load(None, &[], Flags::default()).options;
    assert_eq!(alone.groups[0].ghost_bytes(&alone), alone.index_ghost_bytes);
}

#[test]
fn options_of_a_tier_that_is_not_there_and_a_small_tier_are_noted() {
    let effective = load(Some("[ssd]\nbytes = \"1GiB\"\ndurable = true"), &[], Flags::default());
    assert_eq!(effective.notes, ["ssd.bytes, ssd.durable: not used without ssd.paths"]);
    let effective = load(Some("[ssd]\nbytes = \"1GiB\"\npaths = [\"/a\", \"/b\"]"), &[], Flags::default());
    assert_eq!(effective.notes, ["the SSD tier has 2GiB if its paths are files, less than dram.bytes = 4GiB"]);
}

#[test]
fn memory_is_whole_huge_pages_and_the_rest_is_said() {
    let effective = load(Some("[dram]\nbytes = \"100000000B\""), &[], Flags::default());
    assert_eq!(effective.options.dram_bytes, 94 * MIB);
    assert_eq!(effective.notes, ["dram.bytes = 100MB is rounded down to 94MiB"]);
}

#[test]
fn a_small_machine_gets_a_small_default() {
    let machine = Machine {
        memory_bytes: Some(3 * GIB),
        runtime_folder: Some(true),
        user_runtime_folder: None,
        host_name: Some("Host-A".into()),
    };
    let effective = Options::load(&LoadInput { machine, ..LoadInput::default() }).expect("defaults run");
    assert_eq!(effective.options.dram_bytes, 768 * MIB);
    assert!(effective.notes[0].contains("a quarter of this machine's memory"));
}

#[test]
fn a_user_without_the_runtime_folder_gets_a_socket_of_his_own() {
    let user_runtime_folder = Some(PathBuf::from("/run/user/1000"));
    let machine = Machine { runtime_folder: Some(false), user_runtime_folder, ..Machine::default() };
    let effective = Options::load(&LoadInput { machine, ..LoadInput::default() }).expect("defaults run");
    assert_eq!(effective.options.groups[0].socket, Path::new("/run/user/1000/lapis/lapis.sock"));
    assert_eq!(effective.notes.len(), 1);
}

#[test]
fn variables_of_others_are_noted_and_passed_over() {
    let effective = load(None, &[("LAPIS_SERVICE_HOST", "10.0.0.1"), ("LAPIS_CONFIG", "x")], Flags::default());
    assert_eq!(effective.notes, ["LAPIS_SERVICE_HOST is no option and is passed over"]);
}

#[test]
fn the_example_is_all_comments_and_says_every_default() {
    let commented = load(Some(&example()), &[], Flags::default());
    assert!(commented.sources.is_empty());
    // Comments with a space are prose, those without are options.
    let group = example().find("#[[group]]").expect("the example has a group");
    let given: String = example()[..group].lines().map(|line| option_line(line) + "\n").collect();
    let effective = load(Some(&given), &[], Flags::default());
    assert_eq!(effective.options, commented.options);
    assert_eq!(effective.sources.len(), Options::DEFINITIONS.len());
    let given: String = example().lines().map(|line| option_line(line) + "\n").collect();
    assert_eq!(load(Some(&given), &[], Flags::default()).options, commented.options);
}

fn option_line(line: &str) -> String {
    match line.strip_prefix('#') {
        Some(rest) if !rest.starts_with(' ') => rest.into(),
        _ => line.into(),
    }
}

#[test]
fn the_shipped_example_agrees_with_the_definitions() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../daemon/ops/lapis.toml");
    if std::env::var_os("LAPIS_BLESS").is_some() {
        std::fs::write(&path, example()).expect("the example can be written");
    }
    let shipped = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(shipped, example(), "LAPIS_BLESS=1 cargo test -p lapis-config writes it anew");
}

#[test]
fn every_option_has_one_flag_one_variable_and_help_within_its_bounds() {
    Flags::augment_args(Command::new("lapis")).debug_assert();
    let mut names: Vec<String> = Options::DEFINITIONS.iter().map(|d| d.flag()).collect();
    names.extend(Options::DEFINITIONS.iter().map(|d| d.variable()));
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
    for definition in Options::DEFINITIONS {
        assert!(definition.help.ends_with('.') && definition.help.len() > 20, "{}", definition.name);
    }
}

#[test]
fn one_file_names_all_hosts_and_each_passes_itself_over() {
    let text = "[peers]\nlisten = \"10.0.0.1:7450\"\nca = \"/c\"\ncertificate = \"/d\"\nkey = \"/k\"\n\
                members = [\"Host-A = 10.0.0.1:7451\", \"host-b=host-b.example:7450\", \"host-c=[FD00::3]:7450\"]\n\
                [[group]]\nname = \"a\"\nsocket = \"/s/a\"\npeers = [\"host-b\"]\n";
    let effective = load(Some(text), &[], Flags::default());
    let options = &effective.options;
    assert_eq!(options.peers_host, "host-a");
    let others: Vec<String> = options.other_members().map(|member| member.to_string()).collect();
    assert_eq!(others, ["host-b=host-b.example:7450", "host-c=[fd00::3]:7450"]);
    assert_eq!(options.peers_members[2].ip(), Some("fd00::3".parse().expect("an address")));
    assert_eq!((options.peers_members[1].ip(), options.peers_members[1].port()), (None, 7450));
    let group = &options.groups[0];
    assert!(group.admits_peer("host-b") && !group.admits_peer("host-c"));
    assert!(lapis_config::Group::default().admits_peer("host-c"), "all, where none is named");
    let note = "peers.members has this host at host-a=10.0.0.1:7451, but peers.listen is 10.0.0.1:7450";
    assert_eq!(effective.notes, [note]);
    let words = "host-b=127.0.0.1:1,host-c=[::1]:2";
    let flags = flags(&["--peers-listen", "[::1]:7450", "--peers-members", words]);
    let effective = load(None, &[], flags);
    assert_eq!(effective.options.other_members().count(), 2);
    assert!(effective.render(1).contains("[\"host-b=127.0.0.1:1\", \"host-c=[::1]:2\"]"));
}

#[test]
fn what_is_said_of_peers_is_not_used_by_a_host_that_is_alone() {
    let text = "[peers]\nmembers = [\"host-b=10.0.0.2:7450\"]\nkey = \"/k\"\n\
                [[group]]\nname = \"a\"\nsocket = \"/s/a\"\npeers = [\"host-b\"]\n";
    let effective = load(Some(text), &[], flags(&["--peers-listen", "off"]));
    assert_eq!(effective.notes, ["peers.members, peers.key, group.peers: not used without peers.listen"]);
}

#[test]
fn hosts_find_each_other_in_etcd() {
    let text = "[peers]\nlisten = \"10.0.0.1:7450\"\nca = \"/c\"\ncertificate = \"/d\"\nkey = \"/k\"\n\
                etcd = [\"HTTPS://Etcd-1.Example:2379/\", \"https://[FD00::5]:2379\"]\netcd_ca = \"/e\"\n\
                [[group]]\nname = \"a\"\nsocket = \"/s/a\"\npeers = [\"whoever\"]\n";
    let effective = load(Some(text), &[], Flags::default());
    let options = &effective.options;
    let endpoints: Vec<String> = options.peers_etcd.iter().map(|endpoint| endpoint.to_string()).collect();
    assert_eq!(endpoints, ["https://etcd-1.example:2379", "https://[fd00::5]:2379"]);
    assert_eq!((options.peers_etcd[0].host(), options.peers_etcd[1].host()), ("etcd-1.example", "fd00::5"));
    assert_eq!((options.peers_etcd_prefix.as_str(), options.peers_etcd_ttl.as_secs()), ("/lapis/hosts/", 10));
    assert_eq!(options.peers_advertise, "10.0.0.1:7450", "as it listens");
    assert!(effective.notes.is_empty(), "{:?}", effective.notes);
    let shown = effective.render(1);
    assert!(shown.contains("[\"https://etcd-1.example:2379\", \"https://[fd00::5]:2379\"]"), "{shown}");
    // A port that is not known yet, a name, and what can be only a slip or a tunnel.
    let port_0 = flags(&["--peers-listen", "127.0.0.1:0", "--peers-etcd", "http://127.0.0.1:2379"]);
    assert_eq!(load(None, &[], port_0).options.peers_advertise, "");
    let words = ["--peers-listen", "127.0.0.1:1", "--peers-etcd", "http://e:1", "--peers-advertise", "Host-A:2"];
    let effective = load(None, &[], flags(&words));
    assert_eq!(effective.options.peers_advertise, "host-a:2");
    assert_eq!(
        effective.notes,
        ["peers.advertise is host-a:2, but peers.listen is 127.0.0.1:1, for this machine alone"]
    );
}

#[test]
fn a_login_that_goes_over_the_wire_readable_is_told_of() {
    let notes = |endpoint: &str| {
        let words = ["--peers-listen", "127.0.0.1:1", "--peers-etcd", endpoint, "--peers-etcd-login", "/l"];
        load(None, &[], flags(&words)).notes
    };
    assert_eq!(notes("http://127.0.0.1:2379"), [""; 0]);
    assert_eq!(
        notes("http://10.0.0.5:2379"),
        ["peers.etcd_login goes to http://10.0.0.5:2379 unencrypted: whoever sees the wire can read it"]
    );
}

#[test]
fn who_listens_at_all_addresses_says_which_one_others_reach() {
    let text = "[peers]\nlisten = \"0.0.0.0:7450\"\nca = \"/c\"\ncertificate = \"/d\"\nkey = \"/k\"\netcd = [\"http://e:1\"]\n";
    let file = ConfigFile::Text(PathBuf::from("f"), text.into());
    let input = LoadInput { file: Some(file), env: Vec::new(), flags: Vec::new(), machine: Machine::default() };
    let errors = Options::load(&input).expect_err("nobody could reach 0.0.0.0").to_string();
    assert!(errors.contains("peers.advertise: peers.listen = 0.0.0.0:7450 is no address that others"), "{errors}");
    let text = format!("{text}advertise = \"10.0.0.1:7450\"");
    assert_eq!(load(Some(&text), &[], Flags::default()).options.peers_advertise, "10.0.0.1:7450");
}

#[test]
fn what_is_said_of_etcd_is_not_used_without_it() {
    let text =
        "[peers]\nlisten = \"127.0.0.1:7450\"\nadvertise = \"127.0.0.1:1\"\netcd_ttl = \"5s\"\netcd_login = \"/l\"";
    let effective = load(Some(text), &[], Flags::default());
    assert_eq!(effective.notes, ["peers.advertise, peers.etcd_ttl, peers.etcd_login: not used without peers.etcd"]);
}

#[test]
fn what_needs_rdma_is_not_used_without_it() {
    let notes = |switch: &[&str]| {
        let files = ["--peers-ca", "/c", "--peers-certificate", "/d", "--peers-key", "/k"];
        let words = ["--peers-listen", "127.0.0.1:1", "--peers-locate", "onesided", "--peers-rdma-devices", "mlx5_0"];
        let words = [&words[..], &files].concat();
        load(None, &[], flags(&[&words[..], switch].concat())).notes
    };
    assert_eq!(notes(&[]), [""; 0]);
    let unused = "peers.rdma_devices, peers.locate: not used with";
    assert_eq!(notes(&["--peers-rdma", "off"]), [format!("{unused} peers.rdma = \"off\"")]);
    let encrypted = notes(&["--peers-encrypt-blocks"]);
    assert_eq!(encrypted, [format!("{unused} peers.encrypt_blocks, as RDMA does not encrypt")]);
}

#[test]
fn gpus_are_used_only_where_they_have_bytes() {
    let text = "[hbm]\nbytes = \"3MiB\"\ngpus = [1, \"41:00.0\"]\ncuda_library = \"/opt/cuda/libcuda.so\"";
    let effective = load(Some(text), &[], Flags::default());
    assert_eq!(effective.options.hbm_bytes, 2 << 20);
    assert_eq!(effective.notes, ["hbm.bytes = 3MiB is rounded down to 2MiB"]);
    assert!(effective.render(1).contains("[1, \"0000:41:00.0\"]"));
    let effective = load(None, &[], flags(&["--hbm-gpus", "0", "--hbm-cuda-library", "auto"]));
    assert_eq!(effective.notes, ["hbm.gpus, hbm.cuda_library: not used without hbm.bytes"]);
    let groups = |first: &str| {
        let text = format!(
            "[hbm]\nbytes = \"2MiB\"\n[[group]]\nname = \"a\"\nsocket = \"/run/a.sock\"\n{first}\n[[group]]\nname = \"b\"\nsocket = \"/run/b.sock\"\n"
        );
        load(Some(&text), &[], Flags::default()).notes
    };
    assert_eq!(groups(""), ["hbm.bytes: only group \"a\", the first, has memory on GPUs"]);
    let nobody = "hbm.bytes: nobody uses the GPUs, as of the groups only the first has memory there, and group \"a\" may not put";
    assert_eq!(groups("may_put = false"), [nobody]);
    let sums = load(None, &[], flags(&["--hbm-bytes", "2MiB", "--verify", "always"])).notes;
    assert_eq!(sums, ["hbm.bytes: with verify = \"always\" blocks are not read where they lie on GPUs"]);
    let named = lapis_config::Gpus::Named(vec![lapis_config::GpuName::Index(0)]);
    assert_eq!((effective.options.hbm_bytes, effective.options.hbm_gpus), (0, named));
}
