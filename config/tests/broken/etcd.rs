//! What is wrong with how hosts should find each other in etcd.

use super::Case;

pub const FILES: &[Case] = &[
    (
        "etcd without a scheme",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"10.0.0.5:2379\"]",
        &[("f:3: peers.etcd:", "begin it with http:// or https://")],
    ),
    (
        "etcd by another scheme",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"etcd://10.0.0.5:2379\"]",
        &[("f:3: peers.etcd:", "begin it with http:// or https://")],
    ),
    (
        "etcd without a port",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://10.0.0.5\"]",
        &[("f:3: peers.etcd:", "give its port of 1 to 65535 too")],
    ),
    (
        "etcd at an odd port",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://10.0.0.5:+1\"]",
        &[("f:3: peers.etcd:", "give its port of 1 to 65535 too")],
    ),
    (
        "etcd with a path",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://10.0.0.5:2379/v3\"]",
        &[("f:3: peers.etcd:", "where keys lie is peers.etcd_prefix")],
    ),
    (
        "etcd with a password",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://a:b@10.0.0.5:2379\"]",
        &[("f:3: peers.etcd:", "belong into the file peers.etcd_login")],
    ),
    (
        "etcd with a password and a path",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://a:b/c@10.0.0.5:2379/v3\"]",
        &[("f:3: peers.etcd:", "\"...@10.0.0.5:2379/v3\" is not an endpoint of etcd")],
    ),
    (
        "etcd nowhere",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://:2379\"]",
        &[("f:3: peers.etcd:", "IPv6 address in [ ], or a name")],
    ),
    (
        "etcd twice",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://e:1\", \"http://E:1/\"]",
        &[("f:3: peers.etcd:", "\"http://e:1\" is given twice")],
    ),
    (
        "etcd half with TLS",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://e:1\", \"https://f:1\"]",
        &[("f:3: peers.etcd:", "http:// for all, or https:// for all")],
    ),
    (
        "etcd as a text",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = \"http://e:1\"",
        &[("f:3: peers.etcd:", "expected a list of endpoints")],
    ),
    (
        "etcd with TLS of nobody",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"https://e:1\"]",
        &[("f:3: peers.etcd:", "https://e:1 is known by its certificate: give peers.etcd_ca")],
    ),
    (
        "etcd's certificate without its key",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"https://e:1\"]\netcd_ca = \"/c\"\netcd_certificate = \"/d\"",
        &[("f:5: peers.etcd_certificate:", "peers.etcd_key missing")],
    ),
    (
        "etcd's key without its certificate",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"https://e:1\"]\netcd_ca = \"/c\"\netcd_key = \"/d\"",
        &[("f:5: peers.etcd_key:", "peers.etcd_certificate missing")],
    ),
    (
        "an authority for a plain etcd",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://e:1\"]\netcd_ca = \"/c\"",
        &[("f:4: peers.etcd_ca:", "is for https://")],
    ),
    (
        "a prefix that runs into names",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://e:1\"]\netcd_prefix = \"/hosts\"",
        &[("f:4: peers.etcd_prefix:", "the last one a /")],
    ),
    (
        "a lease of a moment",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://e:1\"]\netcd_ttl = \"1s\"",
        &[("f:4: peers.etcd_ttl:", "less than the least, 2s")],
    ),
    (
        "advertised without a port",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://e:1\"]\nadvertise = \"10.0.0.1\"",
        &[("f:4: peers.advertise:", "then : and a port")],
    ),
    (
        "advertised to nobody",
        "[peers]\nlisten = \"127.0.0.1:7450\"\netcd = [\"http://e:1\"]\nadvertise = \"0.0.0.0:7450\"",
        &[("f:4: peers.advertise:", "0.0.0.0:7450 is no address that others could reach")],
    ),
    (
        "etcd of a host that is alone",
        "[peers]\netcd = [\"http://e:1\"]",
        &[("f:2: peers.etcd:", "without peers.listen this host is alone")],
    ),
];
