//! Which NIC of this host answers one of another.

use super::said::GidKind;

/// Which NIC here answers one of another host: of those whose address is of its kind the one of its name, as hosts of one
/// make name what is on one network alike, else by the number of the lane.
pub(super) fn partner<'a>(
    nics: impl Iterator<Item = (usize, (GidKind, &'a str))>,
    name: &str,
    kind: GidKind,
    lane: u8,
) -> Option<usize> {
    let fit: Vec<(usize, &str)> =
        nics.filter(|(_, (of, _))| *of == kind).map(|(index, (_, name))| (index, name)).collect();
    let named = fit.iter().find(|(_, of)| *of == name);
    let by_lane = || fit.get(usize::from(lane) % fit.len().max(1));
    named.or_else(by_lane).map(|(index, _)| *index)
}

#[test]
fn a_nic_is_answered_by_one_that_it_can_hear() {
    use GidKind::{InfiniBand, RoceV2Ip4};
    let nics = [(RoceV2Ip4, "mlx5_0"), (InfiniBand, "mlx5_1"), (RoceV2Ip4, "mlx5_2")];
    let partner = |name, kind, lane| partner(nics.into_iter().enumerate(), name, kind, lane);
    assert_eq!(partner("mlx5_2", RoceV2Ip4, 0), Some(2), "of the same name");
    assert_eq!(partner("mlx5_1", RoceV2Ip4, 1), Some(2), "not of another kind");
    assert_eq!((partner("a", RoceV2Ip4, 0), partner("a", RoceV2Ip4, 2)), (Some(0), Some(0)));
    assert_eq!(partner("a", GidKind::RoceV1, 0), None);
}
