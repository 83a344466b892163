//! Every option of Lapis, defined once: name, field, unit, default, help. The file, the flags, the variables, the
//! example and the help texts all derive from these two tables.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::budget::BytesADay;
use crate::mistake::Mistake;
use crate::quantity::{MIB, TIB};
use crate::units::*;

/// One option: what its users see of it.
pub struct Definition {
    /// As in the file, with its table: "dram.bytes".
    pub name: &'static str,
    /// As a word: what a flag would be given.
    pub default: &'static str,
    pub help: &'static str,
    pub unit: &'static dyn Described,
}

impl Definition {
    /// "--dram-bytes".
    pub fn flag(&self) -> String {
        format!("--{}", self.name.replace(['.', '_'], "-"))
    }

    /// "LAPIS_DRAM_BYTES".
    pub fn variable(&self) -> String {
        format!("LAPIS_{}", self.name.replace('.', "_").to_uppercase())
    }
}

macro_rules! options {
    (
        $(#[$doc:meta])* $struct:ident
        $( $name:literal $field:ident: $type:ty = $default:literal, $unit:expr, $help:literal; )*
        $( also $(#[$extra_doc:meta])* $extra:ident: $extra_type:ty; )*
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, PartialEq)]
        pub struct $struct {
            $( #[doc = $help] pub $field: $type, )*
            $( $(#[$extra_doc])* pub $extra: $extra_type, )*
        }

        impl $struct {
            pub const DEFINITIONS: &'static [Definition] =
                &[$( Definition { name: $name, default: $default, help: $help, unit: &$unit } ),*];

            /// Reads `raw` as the option called `name`, which must be one of [`Self::DEFINITIONS`].
            pub(crate) fn set(&mut self, name: &str, raw: &Raw) -> Result<(), Mistake> {
                match name {
                    $( $name => self.$field = ($unit).read(raw)?, )*
                    _ => unreachable!("the caller looked the name up"),
                }
                Ok(())
            }

            /// The value of the option called `name`, as in the file but without quotes.
            pub(crate) fn show(&self, name: &str) -> String {
                match name {
                    $( $name => ($unit).show(&self.$field), )*
                    _ => unreachable!("the caller looked the name up"),
                }
            }
        }

        impl Default for $struct {
            fn default() -> Self {
                Self {
                    $( $field: ($unit).read(&Raw::Word($default.into())).expect("a default is valid"), )*
                    $( $extra: Default::default(), )*
                }
            }
        }
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Reserved huge pages if there are any, else transparent ones.
    Auto,
    Off,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verify {
    /// When bytes cross a tier, a restart or a host.
    Auto,
    /// At every hit too.
    Always,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyName {
    Hazq,
    Lru,
}

impl PolicyName {
    pub const CHOICES: Choice<Self> = Choice(&[("hazq", Self::Hazq), ("lru", Self::Lru)]);
}

/// Whether blocks go between hosts by RDMA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rdma {
    /// Where both hosts have it, else by TCP.
    Auto,
    Off,
}

/// How it is found out where another host's blocks lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Locate {
    /// It is asked.
    Asked,
    /// They are looked up in its block table by RDMA, where both hosts say so.
    OneSided,
}

/// How the SSD tier's reads and writes reach the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SsdEngine {
    /// The first of NVMe commands, io_uring and threads that can be had for a path.
    Auto,
    /// NVMe commands past the block layer.
    Passthrough,
    /// The same, completions looked for without an interrupt.
    PassthroughPolled,
    Uring,
    Threads,
    /// SPDK, of the controllers that are named by PCI address; these have it under `Auto` too.
    Spdk,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
    Trace,
}

/// Memory comes in these: a huge page.
pub const DRAM_STEP_BYTES: u64 = 2 * MIB;
/// Least memory of the DRAM tier and of a group's ceiling.
pub const DRAM_BYTES_MIN: u64 = 16 * MIB;
/// Most blocks of all tables: lines are numbered in 32 bits, and a table has a quarter more of them than entries.
pub(crate) const INDEX_ENTRIES_MAX: u64 = 3_000_000_000;
/// Most trust groups of one daemon.
pub const GROUPS_MAX: usize = 64;
/// Least bytes of a segment of the SSD log; larger where the largest block asks for it.
pub const SSD_SEGMENT_BYTES_MIN: u64 = 64 * MIB;
/// Least bytes that a trust group needs on each path of the SSD tier: eight segments, of which one is being filled
/// and one emptied.
pub const SSD_BYTES_MIN: u64 = 8 * SSD_SEGMENT_BYTES_MIN;
/// Most paths of the SSD tier: devices are numbered in 8 bits.
pub const SSD_PATHS_MAX: usize = 256;

/// Most hosts that are one cache.
pub const PEERS_MAX: usize = 1024;
/// Most servers of one etcd cluster; it is seldom run with more than seven.
pub const ETCD_ENDPOINTS_MAX: usize = 16;

/// Most GPUs of the HBM tier.
pub const GPUS_MAX: usize = 64;

/// Most RDMA devices that are used at once.
pub const RDMA_DEVICES_MAX: usize = 8;

const DRAM: Size = Size { least: DRAM_BYTES_MIN, most: 16 * TIB, auto: false };
const DEADLINE: Span = Span { least: Duration::from_millis(1), most: Duration::from_secs(3600) };

options! {
    /// What the daemon was told. What "auto" stands for is already in its place.
    Options
    "verify" verify: Verify = "auto",
        Choice(&[("auto", Verify::Auto), ("always", Verify::Always)]),
        "When a block's checksum is compared with its bytes: when they cross a tier, a restart or a host (auto), \
         or at every local hit too (always).";
    "dram.bytes" dram_bytes: u64 = "4GiB", DRAM,
        "Memory of the DRAM tier, all groups together; rounded down to 2 MiB. The default is a quarter of the \
         machine's memory where that is less.";
    "dram.huge_pages" dram_huge_pages: HugePages = "auto",
        Choice(&[("auto", HugePages::Auto), ("off", HugePages::Off)]),
        "Back the arena with huge pages: reserved ones if there are enough, else transparent ones (auto), or 4 \
         KiB pages (off).";
    "dram.lock" dram_lock: bool = "false", Switch,
        "Lock the arena in memory, so that it is never swapped out. Needs a memlock limit of dram.bytes \
         (LimitMEMLOCK=infinity in the unit, ulimit -l in a shell) or CAP_IPC_LOCK.";
    "dram.populate_threads" dram_populate_threads: u64 = "2", Count { least: 1, most: 64, auto: false },
        "Threads that touch fresh memory in the background; a slot is handed out only once its memory is there.";
    "hbm.bytes" hbm_bytes: u64 = "0B", Size { least: 0, most: 4 * TIB, auto: false },
        "Memory of each GPU that the HBM tier takes; rounded down to 2 MiB. 0B: no GPU is used, and no driver looked for.";
    "hbm.gpus" hbm_gpus: Gpus = "all", GpuNames { most: GPUS_MAX },
        "The GPUs of the HBM tier, by UUID or PCI bus id as nvidia-smi prints them, or by CUDA's index, as in gpus = [0, \
         \"GPU-8a3f5c0e-0b1d-4e5f-9a7c-2d6b1f3e4a50\", \"0000:41:00.0\"]; all: those that the driver shows to this process.";
    "hbm.cuda_library" hbm_cuda_library: Option<PathBuf> = "auto", OrAuto(FilePath),
        "The CUDA driver's library. auto: libcuda.so or libcuda.so.1, as the loader finds it.";
    "topology.follow" topology_follow: bool = "true", Switch,
        "Follow the host's NUMA nodes: memory is taken from each as it has NICs and SSDs that move blocks, and the threads of \
         an SSD are kept on the CPUs of its node. `lapis topology` shows what comes of it. false: the kernel chooses.";
    "index.entries_max" index_entries_max: u64 = "auto",
        Count { least: 1024, most: INDEX_ENTRIES_MAX, auto: true },
        "Most blocks that can be known at once; a group with a lower DRAM ceiling gets its share. A full table \
         evicts. auto: (dram.bytes + ssd.bytes of each path) / 64KiB; give a number for block devices of another \
         size, for larger blocks, and where blocks of 64KiB or less are to stay on GPUs alone.";
    "index.ghost_bytes" index_ghost_bytes: u64 = "auto", Size { least: 64 << 10, most: 64 << 30, auto: true },
        "Memory for what is remembered of blocks that are gone, 16 bytes each: by these the policy hazq sees that it \
         evicted too early, and goes on counting a session's turns. auto: 16 bytes for each of index.entries_max, at least \
         1MiB. Groups share it by their DRAM ceilings.";
    "server.socket" server_socket: PathBuf = "/run/lapis/lapis.sock", SocketPath,
        "Unix socket of the group \"default\", which is there when the file has no [[group]]. Who may open it may \
         use the cache. Without /run/lapis and not as root: $XDG_RUNTIME_DIR/lapis/lapis.sock.";
    "server.socket_mode" server_socket_mode: u32 = "0660", FileMode,
        "Permissions of every group's socket.";
    "server.clients_max" server_clients_max: u64 = "256", Count { least: 1, most: 4096, auto: false },
        "Most clients connected to one group.";
    "client.magazine_bytes_max" client_magazine_bytes_max: u64 = "auto",
        Size { least: MIB, most: 16 * TIB, auto: true },
        "Free memory that one client may hold in advance for its puts. auto: dram.bytes / 64, at least 1MiB and \
         at most 256MiB.";
    "client.pin_bytes_max" client_pin_bytes_max: u64 = "auto", Size { least: MIB, most: 16 * TIB, auto: true },
        "Bytes that one client may pin, by views in DRAM and by reads under way on GPUs, before it is warned and, under \
         pressure, disconnected. auto: dram.bytes / 4.";
    "client.pin_age_max" client_pin_age_max: Duration = "60s",
        Span { least: Duration::from_millis(100), most: Duration::from_secs(86400) },
        "How long a client over its pin limit may stay warned before it is disconnected.";
    "client.idle_recall" client_idle_recall: Duration = "10s",
        Span { least: Duration::from_millis(100), most: Duration::from_secs(86400) },
        "After this long without a put, a client is asked to give back the free memory it holds.";
    "client.lookup_deadline" client_lookup_deadline: Duration = "50ms", DEADLINE,
        "How long a look-up may take, unless the call says otherwise.";
    "client.get_deadline" client_get_deadline: Duration = "50ms", DEADLINE,
        "How long a get may take, unless the call says otherwise; its bytes are allowed extra time at \
         client.get_rate_min.";
    "client.get_rate_min" client_get_rate_min: u64 = "500MB",
        Size { least: MIB, most: TIB, auto: false },
        "Bytes a second: the deadline of a get or put grows by its bytes over this.";
    "client.put_deadline" client_put_deadline: Duration = "1s", DEADLINE,
        "How long a put may take, unless the call says otherwise; its bytes are allowed extra time at \
         client.get_rate_min.";
    "ssd.paths" ssd_paths: Vec<PathBuf> = "[]", Paths { most: SSD_PATHS_MAX },
        "Files, block devices or NVMe namespaces (/dev/nvme0n1 and /dev/ng0n1 name the same one) of the SSD tier, or NVMe \
         controllers for SPDK by PCI address (pci:0000:65:00.0, or with /2 for another namespace than the first), all \
         used at once; none given: DRAM alone. As in \
         paths = [\"/var/lib/lapis/blocks.ssd\"]; in a flag or a variable with commas between, as in \
         /dev/nvme0n1,/data/lapis.ssd.";
    "ssd.bytes" ssd_bytes: u64 = "64GiB", Size { least: SSD_BYTES_MIN, most: 256 * TIB, auto: false },
        "Bytes of each path that is a file, preallocated at start; of a block device the whole is used.";
    "ssd.engine" ssd_engine: SsdEngine = "auto",
        Choice(&[
            ("auto", SsdEngine::Auto),
            ("passthrough", SsdEngine::Passthrough),
            ("passthrough-polled", SsdEngine::PassthroughPolled),
            ("uring", SsdEngine::Uring),
            ("threads", SsdEngine::Threads),
            ("spdk", SsdEngine::Spdk),
        ]),
        "How the devices are read and written: by NVMe commands past the block layer where the path is a local NVMe \
         namespace that takes them from this user, else by io_uring where the kernel allows it, else by threads (auto), \
         or by one of them alone. passthrough-polled looks for completions instead of sleeping, which takes a processor \
         for each busy device, where the nvme driver has queues for it (nvme.poll_queues); auto never does. Controllers \
         that are named by PCI address are SPDK's, under auto and spdk.";
    "ssd.spdk_library" ssd_spdk_library: Option<PathBuf> = "auto", LibraryFolder,
        "Folder of SPDK's shared libraries (libspdk_env_dpdk.so, libspdk_nvme.so), for paths like pci:0000:65:00.0. auto: \
         where its installation usually puts them. docs/spdk.md says how to build it.";
    "ssd.required" ssd_required: bool = "true", Switch,
        "If false, a tier that cannot be opened is said in the log and the daemon serves DRAM alone.";
    "ssd.queue_depth" ssd_queue_depth: u64 = "128", Count { least: 1, most: 4096, auto: false },
        "Operations that one device is given at once.";
    "ssd.threads" ssd_threads: u64 = "32", Count { least: 1, most: 256, auto: false },
        "Threads of each device where the engine is threads.";
    "ssd.durable" ssd_durable: bool = "false", Switch,
        "Flush the device before and after each page of contents, so that blocks counted as on SSD survive a power \
         cut, and not only a kill of the daemon. Without it the device may hold what it was given in a volatile cache.";
    "ssd.instance" ssd_instance: String = "default", Name,
        "Tells the logs of two daemons on one host apart: a device of another instance or of another host is refused.";
    "ssd.list_after" ssd_list_after: Duration = "20ms",
        Span { least: Duration::from_millis(1), most: Duration::from_millis(100) },
        "Longest time between the end of a block's write and its line in the contents on the device; a kill of the \
         daemon loses what has no line yet. Shorter costs more pages of contents.";
    "ssd.write_back_ahead" ssd_write_back_ahead: u64 = "auto",
        Size { least: DRAM_STEP_BYTES, most: 16 * TIB, auto: true },
        "Memory that is kept clean ahead of need: of the blocks that are evicted next, so many bytes are on SSD before \
         their room is asked for; a group with a lower DRAM ceiling gets its share. auto: dram.bytes / 16.";
    "ssd.write_budget" ssd_write_budget: Option<u64> = "unlimited", BytesADay,
        "Bytes that are written to all devices in a day, contents and headers included, as in 68TB/day; what is left is \
         saved for a day. Of the blocks that leave memory those are written that are worth most, by the policy hazq. \
         Several groups share it by their DRAM ceilings.";
    "policy.name" policy_name: PolicyName = "hazq", PolicyName::CHOICES,
        "What is evicted first, of blocks without a resident child: by what was learned of how soon blocks of its kind are \
         used again (hazq), or the least recently used one (lru).";
    "metrics.listen" metrics_listen: Option<SocketAddr> = "127.0.0.1:7850", OrOff(Address),
        "Where Prometheus text is served over HTTP.";
    "metrics.public" metrics_public: bool = "false", Switch,
        "Allow metrics.listen to be an address that other hosts reach. There is no password.";
    "peers.listen" peers_listen: Option<SocketAddr> = "off", OrOff(Address),
        "Where other hosts reach this one, as in 10.0.0.1:7450; off: it is alone. An address that other hosts reach needs \
         peers.ca, peers.certificate and peers.key.";
    "peers.data_port" peers_data_port: u64 = "auto", Count { least: 1, most: 65_535, auto: true },
        "Port of the streams on which blocks come, at the address of peers.listen. auto: the port after it.";
    "peers.host" peers_host: String = "auto", HostName,
        "What the other hosts call this one; its certificate must have this name. auto: the machine's host name.";
    "peers.members" peers_members: Vec<Member> = "[]", Members { most: PEERS_MAX },
        "The other hosts and where they listen, as in members = [\"host-b=10.0.0.2:7450\", \"host-c=10.0.0.3:7450\"]. This \
         host may be in it too and is passed over, so that one file fits all.";
    "peers.advertise" peers_advertise: String = "auto", Advertised,
        "Where others reach this host, as it is said to them through etcd. auto: peers.listen; an address of all, like \
         0.0.0.0, is none that others could reach.";
    "peers.etcd" peers_etcd: Vec<Endpoint> = "[]", Endpoints { most: ETCD_ENDPOINTS_MAX },
        "Servers of an etcd cluster (3.4 or later) in which the hosts find each other, as in etcd = \
         [\"http://10.0.0.5:2379\", \"http://10.0.0.6:2379\"]. Those of peers.members are peers besides.";
    "peers.etcd_prefix" peers_etcd_prefix: String = "/lapis/hosts/", KeyPrefix,
        "What the keys of hosts begin with. Hosts of one prefix are one cache.";
    "peers.etcd_ttl" peers_etcd_ttl: Duration = "10s",
        Span { least: Duration::from_secs(2), most: Duration::from_secs(600) },
        "A host that is not heard of by etcd for so long is taken off the list; rounded up to a second.";
    "peers.etcd_ca" peers_etcd_ca: Option<PathBuf> = "off", OrOff(FilePath),
        "Certificates (PEM) of the authority by which an etcd at https:// is known. Read anew for each connection, as \
         are the next three.";
    "peers.etcd_certificate" peers_etcd_certificate: Option<PathBuf> = "off", OrOff(FilePath),
        "The certificate (PEM) that this host shows to etcd, where it asks for one.";
    "peers.etcd_key" peers_etcd_key: Option<PathBuf> = "off", OrOff(FilePath),
        "The private key (PEM) of peers.etcd_certificate.";
    "peers.etcd_login" peers_etcd_login: Option<PathBuf> = "off", OrOff(FilePath),
        "A file with one line USER:PASSWORD for an etcd that asks for it, to be read by the daemon's user alone.";
    "peers.ca" peers_ca: Option<PathBuf> = "off", OrOff(FilePath),
        "Certificate (PEM) of the authority that signs the certificates of all hosts, or several while it is replaced. \
         `lapis cert` makes one for trying out.";
    "peers.certificate" peers_certificate: Option<PathBuf> = "off", OrOff(FilePath),
        "This host's certificate (PEM), with peers.host among its DNS names.";
    "peers.key" peers_key: Option<PathBuf> = "off", OrOff(FilePath),
        "The private key (PEM) of peers.certificate, to be read by the daemon's user alone.";
    "peers.streams" peers_streams: u64 = "4", Count { least: 1, most: 64, auto: false },
        "TCP streams on which blocks come from each peer.";
    "peers.encrypt_blocks" peers_encrypt_blocks: bool = "false", Switch,
        "Encrypt the streams of blocks too, at the price of a copy and of CPU time at both ends. What hosts say to each \
         other is always encrypted beyond loopback.";
    "peers.rdma" peers_rdma: Rdma = "auto",
        Choice(&[("auto", Rdma::Auto), ("off", Rdma::Off)]),
        "Read blocks from other hosts by RDMA where both hosts can, and by TCP otherwise (auto), or always by TCP (off, and \
         with encrypt_blocks, which RDMA cannot). `lapis doctor` says what is used and what is missing.";
    "peers.rdma_devices" peers_rdma_devices: Vec<String> = "[]", Devices { most: RDMA_DEVICES_MAX },
        "Names of the RDMA devices to use, all at once, as in rdma_devices = [\"mlx5_0\", \"mlx5_1\"]; none given: all whose \
         ports are up and have an address of the best kind that any has.";
    "peers.locate" peers_locate: Locate = "asked",
        Choice(&[("asked", Locate::Asked), ("onesided", Locate::OneSided)]),
        "How it is found out where another host's blocks lie. asked: that host is asked; what it finds stays there while it \
         is read, and counts as used there. onesided: chains are looked up in that host's block table by RDMA, without any \
         of its CPU time, where that host says onesided too; it is asked for what is not in its memory, and whatever cannot \
         be looked up. What is read so does not count as used there.";
    "log.level" log_level: LogLevel = "info",
        Choice(&[
            ("error", LogLevel::Error),
            ("warn", LogLevel::Warn),
            ("info", LogLevel::Info),
            ("debug", LogLevel::Debug),
            ("trace", LogLevel::Trace),
        ]),
        "Least important messages that are logged.";
    "hold.socket" hold_socket: Option<PathBuf> = "off", OrOff(SocketPath),
        "Socket of the `lapis hold` that keeps the memory while the daemon restarts. Under systemd its descriptor \
         store is used, whatever this says.";
    "drain.timeout" drain_timeout: Duration = "10s",
        Span { least: Duration::ZERO, most: Duration::from_secs(3600) },
        "How long a stopping daemon goes on committing what its clients had begun to put, and writing to SSD what is only \
         in memory, the hottest first; new puts are refused.";
    also
        /// The trust groups, at least one; the group "default" if the file has none.
        groups: Vec<Group>;
}

options! {
    /// A trust group: clients that trust each other's code and share blocks. Nothing is shared between groups.
    Group
    "group.name" name: String = "default", Name,
        "Name in logs, metrics and kept memory.";
    "group.socket" socket: PathBuf = "/run/lapis/lapis.sock", SocketPath,
        "The group's own Unix socket.";
    "group.uids" uids: Vec<u32> = "[]", Uids,
        "Numbers of the users who may connect; none given: everyone who may open the socket.";
    "group.dram_floor" dram_floor: u64 = "0B", Size { least: 0, most: 16 * TIB, auto: false },
        "Memory that the group always has.";
    "group.dram_ceiling" dram_ceiling: u64 = "auto", Size { least: DRAM_BYTES_MIN, most: 16 * TIB, auto: true },
        "Memory that the group never exceeds. auto: dram.bytes.";
    "group.ssd_floor" ssd_floor: u64 = "0B", Size { least: 0, most: 256 * TIB, auto: false },
        "Bytes of the SSD tier that the group always may have: while it has less, others above their floors give up \
         their oldest blocks for it.";
    "group.ssd_ceiling" ssd_ceiling: u64 = "auto", Size { least: SSD_BYTES_MIN, most: 256 * TIB, auto: true },
        "Bytes of the SSD tier that the group never exceeds; at it, its own oldest blocks go. auto: all of it.";
    "group.peers" peers: Vec<String> = "[]", HostNames { most: PEERS_MAX },
        "Names of the hosts that may ask this group for blocks; none given: all peers.";
    "group.may_put" may_put: bool = "true", Switch,
        "Whether its clients may store blocks; else they map the memory read-only.";
}

impl Options {
    /// The hosts of `peers.members` but this one.
    pub fn other_members(&self) -> impl Iterator<Item = &Member> {
        self.peers_members.iter().filter(|member| member.name != self.peers_host)
    }

    /// Bytes of the SSD tier if all of its paths are files: the size of a block device is not known here.
    pub fn ssd_bytes_of_files(&self) -> u64 {
        self.ssd_bytes.saturating_mul(self.ssd_paths.len() as u64)
    }
}

impl Group {
    /// Entries of this group's table: its share of `index.entries_max` by its ceiling.
    pub fn entries_max(&self, options: &Options) -> u64 {
        let share = u128::from(options.index_entries_max) * u128::from(self.dram_ceiling);
        (share.div_ceil(u128::from(options.dram_bytes.max(1))) as u64).max(1024)
    }

    /// Memory for what this group's policy remembers of blocks that are gone: its share among all groups, by their ceilings.
    pub fn ghost_bytes(&self, options: &Options) -> u64 {
        self.share_of_all(options.index_ghost_bytes, options)
    }

    /// A part of what all groups have together, by their ceilings.
    fn share_of_all(&self, bytes: u64, options: &Options) -> u64 {
        let all: u128 = options.groups.iter().map(|group| u128::from(group.dram_ceiling)).sum();
        (u128::from(bytes) * u128::from(self.dram_ceiling) / all.max(1)) as u64
    }

    /// Memory that this group keeps clean: its share of `ssd.write_back_ahead` by its ceiling.
    pub fn write_back_ahead(&self, options: &Options) -> u64 {
        let share = u128::from(options.ssd_write_back_ahead) * u128::from(self.dram_ceiling);
        (share / u128::from(options.dram_bytes.max(1))) as u64
    }

    /// Bytes that this group may write to SSD in a day: its share of `ssd.write_budget` among all groups, by their ceilings.
    pub fn write_budget(&self, options: &Options) -> Option<u64> {
        options.ssd_write_budget.map(|bytes| self.share_of_all(bytes, options).max(1))
    }

    /// Whether a host, one of the peers, may ask this group for blocks.
    pub fn admits_peer(&self, host: &str) -> bool {
        self.peers.is_empty() || self.peers.iter().any(|name| name == host)
    }

    /// Whether a user may connect to the group's socket, once the file system let it.
    pub fn admits(&self, uid: u32) -> bool {
        self.uids.is_empty() || self.uids.contains(&uid)
    }
}
