//! Every broken configuration is refused whole: each mistake with its place, its option and its reason.

#[path = "broken/etcd.rs"]
mod etcd;

use std::path::PathBuf;

use lapis_config::{ConfigErrors, ConfigFile, Effective, LoadInput, Machine, Options};

const GIB: u64 = 1 << 30;

fn machine() -> Machine {
    Machine {
        memory_bytes: Some(64 * GIB),
        runtime_folder: Some(true),
        user_runtime_folder: None,
        host_name: Some("Host-A".into()),
    }
}

fn load(text: &str, env: &[(&str, &str)], flags: &[(&'static str, &str)]) -> Result<Effective, ConfigErrors> {
    Options::load(&LoadInput {
        file: Some(ConfigFile::Text(PathBuf::from("f"), text.into())),
        env: env.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect(),
        flags: flags.iter().map(|(name, value)| (*name, value.to_string())).collect(),
        machine: machine(),
    })
}

/// Each expected error is the start of its line, "place: option:", then words that the rest has in this order.
fn check(title: &str, result: Result<Effective, ConfigErrors>, expected: &[(&str, &str)]) {
    let errors = match result {
        Ok(_) => panic!("{title}: accepted"),
        Err(errors) => errors,
    };
    let lines: Vec<String> = errors.0.iter().map(|e| e.to_string()).collect();
    assert_eq!(lines.len(), expected.len(), "{title}:\n{}", lines.join("\n"));
    for (line, (start, words)) in lines.iter().zip(expected) {
        let rest = line.strip_prefix(start).unwrap_or_else(|| panic!("{title}: {line:?} does not start {start:?}"));
        assert!(rest.contains(words), "{title}: {line:?} does not say {words:?}");
        assert!(!line.contains('\n') && line.len() < 300, "{title}: one clear line: {line:?}");
    }
}

type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const GROUP: &str = "[[group]]\nname = \"a\"\nsocket = \"/s/a\"\n";

const FILES: &[Case] = &[
    ("number without unit", "[dram]\nbytes = 64", &[("f:2: dram.bytes:", "no unit: write \"64GiB\"")]),
    ("text without unit", "[dram]\nbytes = \"64\"", &[("f:2: dram.bytes:", "no unit")]),
    ("unit in the wrong case", "[dram]\nbytes = \"64gib\"", &[("f:2: dram.bytes:", "use one of B, KiB")]),
    ("unit cut short", "[dram]\nbytes = \"64G\"", &[("f:2: dram.bytes:", "unknown unit")]),
    ("unit of time for bytes", "[dram]\nbytes = \"64s\"", &[("f:2: dram.bytes:", "unknown unit")]),
    ("negative size", "[dram]\nbytes = \"-1GiB\"", &[("f:2: dram.bytes:", "is not a size")]),
    ("negative number", "[dram]\nbytes = -1", &[("f:2: dram.bytes:", "no unit")]),
    ("empty size", "[dram]\nbytes = \"\"", &[("f:2: dram.bytes:", "is not a size")]),
    ("half a byte", "[dram]\nbytes = \"16777216.5B\"", &[("f:2: dram.bytes:", "is not a size")]),
    ("two points", "[dram]\nbytes = \"1.2.3GiB\"", &[("f:2: dram.bytes:", "is not a size")]),
    ("point at the end", "[dram]\nbytes = \"1.GiB\"", &[("f:2: dram.bytes:", "is not a size")]),
    ("size over 64 bits", "[dram]\nbytes = \"99999999999999999999B\"", &[("f:2: dram.bytes:", "is more than")]),
    (
        "size over 64 bits, in two lines",
        "[dram]\nbytes = \"99999999999999999999\\nGB\"",
        &[("f:2: dram.bytes:", "9\\nGB is more than")],
    ),
    ("size that overflows", "[dram]\nbytes = \"99999999TiB\"", &[("f:2: dram.bytes:", "is more than")]),
    ("float", "[dram]\nbytes = 1.5", &[("f:2: dram.bytes:", "found a number with a decimal point")]),
    ("list", "[dram]\nbytes = [\"1GiB\"]", &[("f:2: dram.bytes:", "found a list")]),
    ("boolean", "[dram]\nbytes = true", &[("f:2: dram.bytes:", "found true")]),
    ("date", "[dram]\nbytes = 2026-01-01", &[("f:2: dram.bytes:", "found a date")]),
    ("table for a value", "[dram.bytes]\nx = 1", &[("f:2: dram.bytes.x:", "unknown option, did you mean dram.bytes?")]),
    ("too small", "[dram]\nbytes = \"8MiB\"", &[("f:2: dram.bytes:", "8MiB is less than the least, 16MiB")]),
    ("too large", "[dram]\nbytes = \"32TiB\"", &[("f:2: dram.bytes:", "32TiB is more than the most, 16TiB")]),
    ("more than the machine has", "[dram]\nbytes = \"63GiB\"", &[("f:2: dram.bytes:", "64GiB of memory less 4GiB")]),
    ("slip in a key", "[dram]\nbyts = \"1GiB\"", &[("f:2: dram.byts:", "did you mean dram.bytes?")]),
    ("slip in a table", "[drm]\nbytes = \"1GiB\"", &[("f:2: drm.bytes:", "did you mean dram.bytes?")]),
    (
        "key in the wrong table",
        "[server]\nlisten = \"off\"",
        &[("f:2: server.listen:", "did you mean metrics.listen?")],
    ),
    ("nonsense", "colour = \"red\"", &[("f:1: colour:", "unknown option")]),
    ("value where a table is", "dram = \"4GiB\"", &[("f:1: dram:", "unknown option")]),
    ("not TOML", "[dram\nbytes = \"1GiB\"", &[("f:1: ", "not TOML")]),
    ("key twice", "[dram]\nbytes = \"1GiB\"\nbytes = \"2GiB\"", &[("f:3: ", "not TOML: duplicate key")]),
    ("no value", "[dram]\nbytes =\n[log]\nlevel = \"loud\"", &[("f:2: ", "not TOML"), ("f:4: log.level:", "")]),
    ("duration without unit", "[drain]\ntimeout = 10", &[("f:2: drain.timeout:", "write \"10ms\" or \"10s\"")]),
    ("unknown unit of time", "[drain]\ntimeout = \"10 days\"", &[("f:2: drain.timeout:", "use one of us, ms")]),
    (
        "duration too long",
        "[client]\nput_deadline = \"2h\"",
        &[("f:2: client.put_deadline:", "2h is more than the most, 1h")],
    ),
    (
        "duration of nothing",
        "[client]\nput_deadline = \"0s\"",
        &[("f:2: client.put_deadline:", "0us is less than the least, 1ms")],
    ),
    ("count in quotes", "[server]\nclients_max = \"many\"", &[("f:2: server.clients_max:", "expected a whole number")]),
    ("count of none", "[server]\nclients_max = 0", &[("f:2: server.clients_max:", "0 is less than the least, 1")]),
    ("count below none", "[server]\nclients_max = -3", &[("f:2: server.clients_max:", "-3 is less than the least")]),
    (
        "count over 63 bits",
        "[server]\nclients_max = 0xffffffffffffffff",
        &[("f:2: server.clients_max:", "number too large")],
    ),
    (
        "word that is no choice",
        "[policy]\nname = \"lfu\"",
        &[("f:2: policy.name:", "\"lfu\" is not one of \"hazq\", \"lru\"")],
    ),
    ("choice in capitals", "verify = \"Always\"", &[("f:1: verify:", "is not one of \"auto\", \"always\"")]),
    ("boolean for a word", "verify = true", &[("f:1: verify:", "expected a text in quotes, found true")]),
    ("word for a boolean", "[metrics]\npublic = \"yes\"", &[("f:2: metrics.public:", "expected true or false")]),
    ("relative socket", "[server]\nsocket = \"lapis.sock\"", &[("f:2: server.socket:", "is not an absolute path")]),
    ("socket is a folder", "[server]\nsocket = \"/run/lapis/\"", &[("f:2: server.socket:", "is not an absolute path")]),
    (
        "name for an address",
        "[metrics]\nlisten = \"localhost:7850\"",
        &[("f:2: metrics.listen:", "is not an IP address")],
    ),
    ("address without port", "[metrics]\nlisten = \"127.0.0.1\"", &[("f:2: metrics.listen:", "is not an IP address")]),
    ("public address", "[metrics]\nlisten = \"0.0.0.0:7850\"", &[("f:2: metrics.listen:", "not a loopback address")]),
    (
        "path for a device",
        "[peers]\nrdma_devices = [\"/dev/infiniband/uverbs0\"]",
        &[("f:2: peers.rdma_devices:", "is not a name of a device, like mlx5_0")],
    ),
    (
        "device twice",
        "[peers]\nrdma_devices = [\"mlx5_0\", \"mlx5_0\"]",
        &[("f:2: peers.rdma_devices:", "\"mlx5_0\" is given twice")],
    ),
    (
        "no GPU at all",
        "[hbm]\nbytes = \"1GiB\"\ngpus = []",
        &[("f:3: hbm.gpus:", "is not a GPU or more (hbm.bytes = \"0B\" uses none)")],
    ),
    (
        "name of a GPU's make",
        "[hbm]\ngpus = [0, \"H100\"]",
        &[("f:2: hbm.gpus:", "\"H100\" is not a GPU: its index, its UUID (\"GPU-...\", whole) or its PCI bus id")],
    ),
    (
        "GPU twice, in two ways of writing",
        "[hbm]\ngpus = [\"0000:3b:00.0\", \"3B:00.0\"]",
        &[("f:2: hbm.gpus:", "\"3B:00.0\" is given twice")],
    ),
    ("word for GPUs", "[hbm]\ngpus = \"some\"", &[("f:2: hbm.gpus:", "expected \"all\" or a list of GPUs")]),
    ("less than a step of HBM", "[hbm]\nbytes = \"1MiB\"", &[("f:2: hbm.bytes:", "1MiB is less than the least, 2MiB")]),
    (
        "name of a library",
        "[hbm]\ncuda_library = \"libcuda.so.1\"",
        &[("f:2: hbm.cuda_library:", "is not an absolute path of a file")],
    ),
    ("RDMA by force", "[peers]\nrdma = \"on\"", &[("f:2: peers.rdma:", "\"on\" is not one of \"auto\", \"off\"")]),
    ("mode that is not octal", "[server]\nsocket_mode = \"0888\"", &[("f:2: server.socket_mode:", "octal")]),
    ("mode as a number", "[server]\nsocket_mode = 660", &[("f:2: server.socket_mode:", "expected a file mode")]),
    ("mode that shuts out its owner", "[server]\nsocket_mode = \"0066\"", &[("f:2: server.socket_mode:", "octal")]),
    (
        "pins over the arena",
        "[client]\npin_bytes_max = \"8GiB\"",
        &[("f:2: client.pin_bytes_max:", "8GiB is more than dram.bytes = 4GiB")],
    ),
    ("tables over memory", "[index]\nentries_max = 2000000000", &[("f:2: index.entries_max:", "tables of")]),
    (
        "group without anything",
        "[[group]]",
        &[("f:1: group.name:", "is missing"), ("f:1: group.socket:", "is missing")],
    ),
    ("group as a table", "[group]\nname = \"a\"", &[("f:1: group:", "expected [[group]], found a table")]),
    ("group as a text", "group = \"a\"", &[("f:1: group:", "expected [[group]], found string")]),
    ("group of a number", "group = [1]", &[("f:1: group:", "expected [[group]], found integer")]),
    ("slip in a group", "GROUP dram_flor = \"1GiB\"", &[("f:4: group.dram_flor:", "did you mean group.dram_floor?")]),
    (
        "group name in capitals",
        "[[group]]\nname = \"A b\"\nsocket = \"/s/a\"",
        &[("f:2: group.name:", "is not a name")],
    ),
    (
        "floor over ceiling",
        "GROUP dram_floor = \"2GiB\"\ndram_ceiling = \"1GiB\"",
        &[("f:4: group.dram_floor:", "the floor 2GiB is above the group's ceiling 1GiB")],
    ),
    (
        "ceiling over all",
        "GROUP dram_ceiling = \"5GiB\"",
        &[("f:4: group.dram_ceiling:", "5GiB is more than dram.bytes = 4GiB")],
    ),
    ("floor over all", "GROUP dram_floor = \"5GiB\"", &[("f:4: group.dram_floor:", "above the group's ceiling 4GiB")]),
    (
        "floors over all",
        "GROUP dram_floor = \"3GiB\"\n[[group]]\nname = \"b\"\nsocket = \"/s/b\"\ndram_floor = \"2GiB\"",
        &[("f:8: group.dram_floor:", "add up to 5GiB, more than dram.bytes = 4GiB")],
    ),
    (
        "name twice",
        "GROUP \n[[group]]\nname = \"a\"\nsocket = \"/s/b\"",
        &[("f:6: group.name:", "\"a\" is already used by f:2")],
    ),
    (
        "socket twice",
        "GROUP \n[[group]]\nname = \"b\"\nsocket = \"/s/a\"",
        &[("f:7: group.socket:", "already used by f:3")],
    ),
    (
        "holder on a group's socket",
        "[hold]\nsocket = \"/s/a\"\nGROUP ",
        &[("f:5: group.socket:", "already used by f:2")],
    ),
    (
        "holder on the server's socket",
        "[hold]\nsocket = \"/s/x\"\n[server]\nsocket = \"/s/x\"",
        &[("f:4: server.socket:", "already used by f:2")],
    ),
    ("nobody may put", "GROUP may_put = false", &[("f:4: group.may_put:", "no group may put")]),
    ("uid of nobody", "GROUP uids = [4294967295]", &[("f:4: group.uids:", "not the number of a user")]),
    ("uid as a name", "GROUP uids = [\"root\"]", &[("f:4: group.uids:", "expected the number of a user")]),
    ("one uid, no list", "GROUP uids = 1000", &[("f:4: group.uids:", "expected a list")]),
    ("relative path of a device", "[ssd]\npaths = [\"nvme0n1\"]", &[("f:2: ssd.paths:", "is not an absolute path")]),
    ("folder for a device", "[ssd]\npaths = [\"/data/\"]", &[("f:2: ssd.paths:", "is not an absolute path")]),
    ("one device, no list", "[ssd]\npaths = \"/dev/x\"", &[("f:2: ssd.paths:", "expected a list of paths")]),
    ("a number for a device", "[ssd]\npaths = [1]", &[("f:2: ssd.paths:", "expected a path in quotes")]),
    ("device twice", "[ssd]\npaths = [\"/a/b\", \"/a//b\"]", &[("f:2: ssd.paths:", "\"/a//b\" is given twice")]),
    ("half a controller", "[ssd]\npaths = [\"pci:65\"]", &[("f:2: ssd.paths:", "like pci:0000:65:00.0")]),
    (
        "controller twice",
        "[ssd]\npaths = [\"pci:0000:65:00.0\", \"pci:65:00.0/2\"]",
        &[("f:2: ssd.paths:", "\"pci:65:00.0/2\" is given twice")],
    ),
    (
        "controller for the kernel",
        "[ssd]\npaths = [\"/a\", \"pci:0000:65:00.0\"]\nengine = \"uring\"",
        &[("f:3: ssd.engine:", "pci:0000:65:00.0 is a controller for SPDK")],
    ),
    (
        "file for SPDK",
        "[ssd]\npaths = [\"pci:0000:65:00.0\", \"/a\"]\nengine = \"spdk\"",
        &[("f:3: ssd.engine:", "/a is the kernel's")],
    ),
    ("library nowhere", "[ssd]\nspdk_library = \"lib\"", &[("f:2: ssd.spdk_library:", "not an absolute path")]),
    ("small devices", "[ssd]\npaths = [\"/a\"]\nbytes = \"100MiB\"", &[("f:3: ssd.bytes:", "the least, 512MiB")]),
    (
        "devices too small for the groups",
        "[ssd]\npaths = [\"/a\"]\nbytes = \"768MiB\"\nGROUP [[group]]\nname = \"b\"\nsocket = \"/s/b\"",
        &[("f:3: ssd.bytes:", "768MiB is less than 2 groups need, 1GiB: 512MiB for each")],
    ),
    ("contents too late", "[ssd]\nlist_after = \"1s\"", &[("f:2: ssd.list_after:", "1s is more than the most, 100ms")]),
    ("queue of none", "[ssd]\nqueue_depth = 0", &[("f:2: ssd.queue_depth:", "less than the least, 1")]),
    ("budget without a day", "[ssd]\nwrite_budget = \"68TB\"", &[("f:2: ssd.write_budget:", "write \"68TB/day\"")]),
    ("budget of nothing", "[ssd]\nwrite_budget = \"0\"", &[("f:2: ssd.write_budget:", "write \"0TB/day\"")]),
    ("budget below all", "[ssd]\nwrite_budget = \"0GB/day\"", &[("f:2: ssd.write_budget:", "the least, 1GB/day")]),
    ("budget under zero", "[ssd]\nwrite_budget = -1", &[("f:2: ssd.write_budget:", "is not bytes a day")]),
    ("budget of no unit", "[ssd]\nwrite_budget = \"9XB/day\"", &[("f:2: ssd.write_budget:", "unknown unit")]),
    (
        "floor over ceiling on SSD",
        "GROUP ssd_floor = \"2GiB\"\nssd_ceiling = \"1GiB\"",
        &[("f:4: group.ssd_floor:", "the floor 2GiB is above the group's ceiling 1GiB")],
    ),
    (
        "ceiling over SSD",
        "[ssd]\npaths = [\"/a\"]\nbytes = \"8GiB\"\nGROUP ssd_ceiling = \"9GiB\"",
        &[("f:7: group.ssd_ceiling:", "9GiB is more than the SSD tier has, 8GiB")],
    ),
    (
        "ceiling under what two paths need",
        "[ssd]\npaths = [\"/a\", \"/b\"]\nGROUP ssd_ceiling = \"512MiB\"",
        &[("f:6: group.ssd_ceiling:", "512MiB is less than a group needs on 2 paths, 1GiB")],
    ),
    (
        "floors over SSD",
        "[ssd]\npaths = [\"/a\"]\nbytes = \"8GiB\"\nGROUP ssd_floor = \"5GiB\"\n[[group]]\nname = \"b\"\nsocket = \"/s/b\"\n\
         ssd_floor = \"4GiB\"",
        &[("f:11: group.ssd_floor:", "add up to 9GiB, more than the SSD tier has, 8GiB")],
    ),
    ("ceiling too small", "GROUP ssd_ceiling = \"1MiB\"", &[("f:4: group.ssd_ceiling:", "the least, 512MiB")]),
    ("unknown engine", "[ssd]\nengine = \"aio\"", &[("f:2: ssd.engine:", "is not one of \"auto\", \"passthrough\"")]),
    (
        "more clean memory than memory",
        "[ssd]\nwrite_back_ahead = \"8GiB\"",
        &[("f:2: ssd.write_back_ahead:", "8GiB is more than dram.bytes = 4GiB")],
    ),
    (
        "device on a group's socket",
        "[ssd]\npaths = [\"/s/a\"]\nGROUP ",
        &[("f:5: group.socket:", "already used by f:2")],
    ),
    (
        "device on the holder's socket",
        "[hold]\nsocket = \"/s/a\"\n[ssd]\npaths = [\"/s/a\"]",
        &[("f:4: ssd.paths:", "already used by f:2")],
    ),
    ("peers at a name", "[peers]\nlisten = \"host-a:7450\"", &[("f:2: peers.listen:", "is not an IP address")]),
    (
        "peers without certificates",
        "[peers]\nlisten = \"0.0.0.0:7450\"",
        &[("f:2: peers.listen:", "give peers.ca, peers.certificate and peers.key (`lapis cert` makes them")],
    ),
    (
        "peers without a key",
        "[peers]\nlisten = \"127.0.0.1:7450\"\nca = \"/c\"\ncertificate = \"/d\"",
        &[("f:3: peers.ca:", "peers.key missing")],
    ),
    (
        "a key alone",
        "[peers]\nlisten = \"10.0.0.1:7450\"\nkey = \"/k\"",
        &[("f:3: peers.key:", "peers.ca and peers.certificate missing")],
    ),
    ("a relative key", "[peers]\nkey = \"host.key\"", &[("f:2: peers.key:", "is not an absolute path of a file")]),
    (
        "members of a host that is alone",
        "[peers]\nmembers = [\"host-b=10.0.0.2:7450\"]",
        &[("f:2: peers.members:", "without peers.listen this host is alone")],
    ),
    (
        "a member far off without certificates",
        "[peers]\nlisten = \"127.0.0.1:7450\"\nmembers = [\"b=127.0.0.1:7451\", \"c=[fd00::2]:7450\"]",
        &[("f:3: peers.members:", "c=[fd00::2]:7450 is on another host")],
    ),
    (
        "blocks encrypted without certificates",
        "[peers]\nlisten = \"127.0.0.1:7450\"\nencrypt_blocks = true",
        &[("f:3: peers.encrypt_blocks:", "only with peers.ca")],
    ),
    ("member without a name", "[peers]\nmembers = [\"10.0.0.2:7450\"]", &[("f:2: peers.members:", "like \"host-b=")]),
    ("member of no name", "[peers]\nmembers = [\"=10.0.0.2:1\"]", &[("f:2: peers.members:", "before = must be its")]),
    ("address as a name", "[peers]\nmembers = [\"10.0.0.2=b:1\"]", &[("f:2: peers.members:", "and no address")]),
    ("member without a port", "[peers]\nmembers = [\"b=10.0.0.2\"]", &[("f:2: peers.members:", "with a port of 1")]),
    ("member at port 0", "[peers]\nmembers = [\"b=10.0.0.2:0\"]", &[("f:2: peers.members:", "with a port of 1")]),
    ("member at port +1", "[peers]\nmembers = [\"b=10.0.0.2:+1\"]", &[("f:2: peers.members:", "with a port of 1")]),
    ("port too high", "[peers]\nmembers = [\"b=10.0.0.2:65536\"]", &[("f:2: peers.members:", "with a port of 1")]),
    ("bare IPv6", "[peers]\nmembers = [\"b=fd00::2:7450\"]", &[("f:2: peers.members:", "IPv6 address in [ ]")]),
    ("member at no host", "[peers]\nmembers = [\"b=:7450\"]", &[("f:2: peers.members:", "IPv6 address in [ ]")]),
    ("member at a slip", "[peers]\nmembers = [\"b=10.0.0:7450\"]", &[("f:2: peers.members:", "IPv4 address")]),
    ("members as a text", "[peers]\nmembers = \"b=10.0.0.2:1\"", &[("f:2: peers.members:", "expected a list")]),
    (
        "member twice",
        "[peers]\nmembers = [\"b=10.0.0.2:1\", \"B=10.0.0.3:1\"]",
        &[("f:2: peers.members:", "\"b\" is given twice")],
    ),
    (
        "address twice",
        "[peers]\nmembers = [\"b=10.0.0.2:1\", \"c=10.0.0.2:01\"]",
        &[("f:2: peers.members:", "\"10.0.0.2:1\" is given twice")],
    ),
    ("host with a space", "[peers]\nhost = \"host a\"", &[("f:2: peers.host:", "is not a host's name")]),
    ("no stream", "[peers]\nstreams = 0", &[("f:2: peers.streams:", "less than the least, 1")]),
    (
        "group for a host that is nobody",
        "[peers]\nlisten = \"127.0.0.1:1\"\nmembers = [\"host-b=127.0.0.1:2\"]\nGROUP peers = [\"hots-b\", \"host-a\"]",
        &[("f:7: group.peers:", "\"hots-b\" is not one of peers.members, did you mean host-b?")],
    ),
    ("end of a line in a key", "\"a\\nb\" = 1", &[("f:1: a\\nb:", "unknown option")]),
    (
        "three mistakes",
        "[dram]\nbytes = 64\n\n[server]\nsockt = \"/s\"\n[log]\nlevel = \"loud\"",
        &[
            ("f:2: dram.bytes:", ""),
            ("f:5: server.sockt:", "did you mean server.socket?"),
            ("f:7: log.level:", "\"loud\""),
        ],
    ),
    (
        "a syntax error hides no other mistake",
        "[dram]\nbytes = 64\n[log]\nlevel = info\n[server]\nclients_max = 0",
        &[("f:2: dram.bytes:", "no unit"), ("f:4: ", "not TOML"), ("f:6: server.clients_max:", "less than")],
    ),
];

#[test]
fn each_broken_file_gets_its_own_errors_with_option_and_line() {
    assert!(FILES.len() >= 40);
    for (title, text, expected) in FILES.iter().chain(etcd::FILES) {
        check(title, load(&text.replace("GROUP ", GROUP), &[], &[]), expected);
    }
}

#[test]
fn variables_and_flags_are_refused_by_their_names() {
    let of = |env: &[(&str, &str)], flags: &[(&'static str, &str)]| load("", env, flags);
    check("variable", of(&[("LAPIS_DRAM_BYTES", "64")], &[]), &[("LAPIS_DRAM_BYTES: dram.bytes:", "no unit")]);
    check("slip", of(&[("LAPIS_DRAM_BYTS", "1GiB")], &[]), &[("LAPIS_DRAM_BYTS: ", "did you mean LAPIS_DRAM_BYTES?")]);
    check("flag", of(&[], &[("server.clients_max", "x")]), &[("--server-clients-max: server.clients_max:", "\"x\"")]);
    check("list", of(&[], &[("ssd.paths", "/a,b")]), &[("--ssd-paths: ssd.paths:", "\"b\" is not an absolute path")]);
    check("switch", of(&[], &[("metrics.public", "1")]), &[("--metrics-public: metrics.public:", "true or false")]);
    let all = load("[dram]\nbytes = 1", &[("LAPIS_VERIFY", "no")], &[("log.level", "loud")]);
    check(
        "all places",
        all,
        &[("f:2: dram.bytes:", ""), ("LAPIS_VERIFY: verify:", ""), ("--log-level: log.level:", "")],
    );
}

#[test]
fn a_mistake_is_an_error_even_where_a_better_source_overrules_it() {
    let result = load("[dram]\nbytes = 64", &[], &[("dram.bytes", "1GiB")]);
    check("overruled", result, &[("f:2: dram.bytes:", "no unit")]);
}

#[test]
fn a_wrong_value_brings_no_second_error_by_way_of_its_default() {
    let text = "[dram]\nbytes = \"80gb\"\n[client]\npin_bytes_max = \"20GiB\"\n[[group]]\nname = \"a\"\nsocket = \"/a\"\n\
                dram_floor = \"30GiB\"\ndram_ceiling = \"40GiB\"";
    check("one", load(text, &[], &[]), &[("f:2: dram.bytes:", "unknown unit")]);
}

#[test]
fn a_file_that_cannot_be_read_is_an_error_with_its_path() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let load = |path: PathBuf| {
        Options::load(&LoadInput { file: Some(ConfigFile::Path(path)), machine: machine(), ..LoadInput::default() })
    };
    let missing = folder.path().join("lapis.toml");
    let start = format!("{}: ", missing.display());
    check("missing", load(missing.clone()), &[(&start, "cannot be read: No such file")]);
    std::fs::write(&missing, [b'a', 0xff, b'b']).expect("a file");
    check("not text", load(missing.clone()), &[(&start, "cannot be read")]);
    std::fs::write(&missing, vec![b'#'; (1 << 20) + 1]).expect("a file");
    check("too long", load(missing), &[(&start, "more than the 1048576")]);
    let folder_start = format!("{}: ", folder.path().display());
    check("folder", load(folder.path().into()), &[(&folder_start, "cannot be read")]);
}

#[test]
fn without_a_runtime_folder_the_error_names_the_flag() {
    let machine = Machine { runtime_folder: Some(false), ..machine() };
    let result = Options::load(&LoadInput { machine, ..LoadInput::default() });
    check("no folder", result, &[("default: server.socket:", "give a path with --server-socket")]);
}

#[test]
fn a_host_without_a_usable_name_is_asked_for_one_if_it_has_peers() {
    let load = |listen: &str, host_name: Option<&str>| {
        let machine = Machine { host_name: host_name.map(String::from), ..machine() };
        Options::load(&LoadInput { flags: vec![("peers.listen", listen.into())], machine, ..LoadInput::default() })
    };
    let start = "default: peers.host:";
    check("none", load("127.0.0.1:1", None), &[(start, "this machine's name is not known")]);
    check("odd", load("127.0.0.1:1", Some("a b")), &[(start, "called \"a b\", which cannot be in a certificate")]);
    assert_eq!(load("off", Some("a b")).expect("alone, it needs no name").options.peers_host, "");
    assert_eq!(load("off", Some("Host-A")).expect("alone").options.peers_host, "host-a");
}

proptest::proptest! {
    #[test]
    fn any_text_is_a_configuration_or_a_list_of_errors(
        cuts: [proptest::sample::Index; 4],
        noise in "[\\[\\]=\"'#.,{}0-9a-zG \n]{0,12}",
    ) {
        let options = lapis_config::example().replace("\n#", "\n");
        let place = |index: &proptest::sample::Index| index.index(options.len() + 1);
        let mut places: Vec<usize> = cuts.iter().map(place).filter(|at| options.is_char_boundary(*at)).collect();
        places.sort_unstable();
        let (first, last) = (places.first().copied().unwrap_or(0), places.last().copied().unwrap_or(0));
        let middle = places.get(places.len() / 2).copied().unwrap_or(0);
        let cut_out = format!("{}{noise}{}", &options[..first], &options[last..]);
        for text in [cut_out, format!("{}{noise}", &options[..middle]), noise] {
            match load(&text, &[], &[]) {
                Ok(effective) => assert!(effective.options.dram_bytes >= 16 << 20 && !effective.options.groups.is_empty()),
                Err(errors) => assert!(!errors.0.is_empty() && errors.to_string().lines().count() == errors.0.len()),
            }
        }
    }
}
