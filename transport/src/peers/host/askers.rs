//! The askers of all peers, as wants ask them.

use std::collections::BTreeMap;

use lapis_config::{Key, PoolShape, Time, Wait};

use super::{
    super::{asker::NotNow, directory::PeerId, wants::Ask},
    Member,
};

pub(super) struct Askers<'a> {
    pub(super) now: Time,
    pub(super) members: &'a mut BTreeMap<PeerId, Member>,
}

impl Ask for Askers<'_> {
    fn locate(
        &mut self,
        call: u64,
        peer: PeerId,
        pool: &PoolShape,
        each: bool,
        wait: Wait,
        keys: &[Key],
        deadline: Time,
    ) -> Result<(), NotNow> {
        let member = self.members.get_mut(&peer).ok_or(NotNow::Away)?;
        member.asker.locate(self.now, call, pool, each, wait, keys, deadline)
    }

    fn look(&mut self, call: u64, peer: PeerId, pool: &PoolShape, keys: &[Key], deadline: Time) -> Result<(), NotNow> {
        let member = self.members.get_mut(&peer).ok_or(NotNow::Away)?;
        member.asker.look(self.now, call, pool, keys, deadline)
    }
}
