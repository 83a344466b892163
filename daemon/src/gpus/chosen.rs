//! Which of the GPUs that are there are used. Pure.

use lapis_arena::hbm::DeviceInfo;
use lapis_config::{GPUS_MAX, GpuName, Gpus};

use super::error::GpusError;

/// The GPUs that the configuration names, in its order; all, in the driver's, where it names none.
pub fn choose<'a>(wanted: &Gpus, found: &'a [DeviceInfo]) -> Result<Vec<&'a DeviceInfo>, GpusError> {
    if found.is_empty() {
        return Err(GpusError::None);
    }
    let names = match wanted {
        Gpus::All if found.len() > GPUS_MAX => {
            return Err(GpusError::TooMany { count: found.len(), most: GPUS_MAX });
        }
        Gpus::All => return Ok(found.iter().collect()),
        Gpus::Named(names) => names,
    };
    let mut chosen: Vec<(GpuName, &DeviceInfo)> = Vec::new();
    for &name in names {
        let Some(info) = found.iter().find(|info| is_called(info, name)) else {
            let found: Vec<String> = found.iter().map(described).collect();
            return Err(GpusError::Unknown { name, found: found.join("; ") });
        };
        if let Some((first, _)) = chosen.iter().find(|(_, other)| other.uuid == info.uuid) {
            return Err(GpusError::Twice { first: *first, second: name });
        }
        chosen.push((name, info));
    }
    Ok(chosen.into_iter().map(|(_, info)| info).collect())
}

fn is_called(info: &DeviceInfo, name: GpuName) -> bool {
    match name {
        GpuName::Index(index) => info.index == index,
        GpuName::Uuid(uuid) => info.uuid == uuid,
        GpuName::Pci { .. } => GpuName::pci(&info.pci_bus_id) == Some(name),
    }
}

/// "GPU 1 (NVIDIA H100, 0000:41:00.0, GPU-...)".
pub fn described(info: &DeviceInfo) -> String {
    format!("GPU {} ({}, {}, {})", info.index, info.name, info.pci_bus_id, GpuName::Uuid(info.uuid))
}

#[cfg(test)]
pub fn info(index: u16) -> DeviceInfo {
    DeviceInfo {
        index,
        name: "Some GPU".into(),
        uuid: [index as u8 + 1; 16],
        pci_bus_id: format!("00000000:{:02X}:00.0", 0x40 + index),
        bytes: 80 << 30,
        has_descriptors: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(names: &[GpuName]) -> Result<Vec<u16>, String> {
        let found: Vec<_> = (0..3).map(info).collect();
        let chosen = choose(&Gpus::Named(names.to_vec()), &found);
        chosen.map(|all| all.iter().map(|info| info.index).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn gpus_are_found_by_each_of_their_names_in_the_order_of_the_names() {
        let pci = GpuName::pci("41:00.0").expect("a bus id");
        assert_eq!(chosen(&[GpuName::Uuid([3; 16]), pci, GpuName::Index(0)]), Ok(vec![2, 1, 0]));
        let found = [info(0), info(1)];
        assert_eq!(choose(&Gpus::All, &found).expect("both").len(), 2);
    }

    #[test]
    fn what_is_not_there_is_said_with_what_is() {
        for name in [GpuName::Index(3), GpuName::Uuid([9; 16]), GpuName::pci("00:00.0").expect("a bus id")] {
            let error = chosen(&[GpuName::Index(0), name]).expect_err("not there");
            assert!(error.contains(&format!("names {name}, which is not there")), "{error}");
            assert!(error.contains("GPU 2 (Some GPU, 00000000:42:00.0, GPU-03030303-"), "{error}");
        }
        assert!(matches!(choose(&Gpus::All, &[]), Err(GpusError::None)));
    }

    #[test]
    fn one_gpu_by_two_names_is_refused() {
        let error = chosen(&[GpuName::Index(1), GpuName::Uuid([2; 16])]).expect_err("the same");
        assert!(error.contains("twice, as 1 and as GPU-02020202-0202"), "{error}");
        let many: Vec<_> = (0..=GPUS_MAX as u16).map(info).collect();
        assert!(matches!(choose(&Gpus::All, &many), Err(GpusError::TooMany { .. })));
    }
}
