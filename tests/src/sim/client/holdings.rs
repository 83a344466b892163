//! What a client holds over several turns: views, whose bytes must stay what they were, and reserved slots, which it
//! fills in halves.

use std::{sync::Arc, time::Duration};

use fastrand::Rng;
use lapis_client::{PutResult, Reservation, ReserveResult, Session, View};
use lapis_config::Key;
use lapis_transport::control::Warning;

use super::{Client, Context, Manners};
use crate::sim::{jobs::Call, model::Model};

pub(super) struct Held {
    view: View,
    session: Arc<Session>,
    key: Key,
    number: u64,
}

pub(super) struct Filling {
    reservation: Reservation,
    keys: Vec<Key>,
    numbers: Vec<Option<u64>>,
    pool: usize,
    /// Later turns write the second half.
    half: bool,
}

impl Client {
    pub(super) fn view(
        &mut self,
        cx: &mut Context<'_>,
        session: &Arc<Session>,
        pool: usize,
        keys: &[Key],
    ) -> Result<(), String> {
        if self.views.len() >= cx.plan.views {
            return Ok(());
        }
        let views = session.view(&self.pools[pool], keys, None).map_err(|error| format!("a view: {error}"))?;
        cx.note(format_args!("views {} of {}", views.hits(), keys.len()));
        for (key, view) in keys.iter().zip(views.into_vec()) {
            if let Some(view) = view {
                let number = cx.model.read((self.group, pool, *key), session.table_id(), &bytes_of(&view))?;
                cx.tally.views += 1;
                self.views.push(Held { view, session: session.clone(), key: *key, number });
            }
        }
        Ok(())
    }

    /// What a view shows stays what it was, whatever becomes of the block, as long as the daemon heeds the client, and the
    /// client does not take back behind its own back what it told the daemon.
    pub(super) fn look_at_views(&mut self, cx: &mut Context<'_>) -> Result<(), String> {
        if self.views.is_empty() {
            return Ok(());
        }
        let at = cx.rng.usize(..self.views.len());
        if self.manners != Manners::Evil {
            self.views[at].judge()?;
        }
        if cx.percent(if cx.ending { 100 } else { 20 }) {
            self.views.swap_remove(at);
        }
        Ok(())
    }

    pub(super) fn hold_reservation(
        &mut self,
        cx: &mut Context<'_>,
        reservation: Reservation,
        keys: Vec<Key>,
        of: (u64, usize),
    ) {
        let (table, pool) = of;
        let numbers = reservation.results().iter().zip(&keys).map(|(result, key)| match result {
            ReserveResult::Slot(_) => Some(cx.model.put((self.group, pool, *key), table)),
            _ => None,
        });
        let numbers: Vec<Option<u64>> = numbers.collect();
        cx.note(format_args!("fills puts {numbers:?} of pool {pool}, {} bytes", reservation.block_bytes()));
        let mut filling = Filling { reservation, keys, numbers, pool, half: false };
        filling.write(0);
        self.filling.push(filling);
    }

    pub(super) fn fill(&mut self, cx: &mut Context<'_>) {
        if self.filling.is_empty() || !(cx.ending || cx.percent(40)) {
            return;
        }
        let at = cx.rng.usize(..self.filling.len());
        if !self.filling[at].half {
            self.filling[at].half = true;
            return self.filling[at].write(1);
        }
        let Filling { reservation, numbers, pool, .. } = self.filling.swap_remove(at);
        if cx.percent(15) {
            cx.note(format_args!("aborts {} slots", numbers.len()));
            for number in numbers.into_iter().flatten() {
                cx.model.put_ended(number, PutResult::Exists);
            }
            return;
        }
        if let Some(session) = self.session.clone() {
            let deadline = Duration::from_secs(1);
            let call = Call {
                session: &session,
                group: self.group,
                handle: &self.pools[pool],
                pool,
                deadline,
                epoch: self.epoch,
            };
            let job = call.commit(cx, reservation, numbers);
            self.jobs.push(job);
        }
    }

    /// A forked child goes on writing into the slots that its parent was filling.
    pub fn haunt(&mut self, rng: &mut Rng) {
        if self.filling.is_empty() {
            return;
        }
        let at = rng.usize(..self.filling.len());
        let filling = &mut self.filling[at];
        let garbage = [rng.u8(..); 512];
        for i in 0..filling.keys.len() {
            let last = filling.reservation.block_bytes().saturating_sub(garbage.len() as u64);
            let (offset, bytes) = (rng.u64(..=last), garbage.len().min(filling.reservation.block_bytes() as usize));
            filling.reservation.write_at(i, offset, &garbage[..bytes]).expect("within the block");
        }
    }

    pub fn fills_slots(&self) -> bool {
        !self.filling.is_empty()
    }
}

impl Filling {
    /// Writes one half of every block.
    fn write(&mut self, half: u64) {
        let bytes = self.reservation.block_bytes();
        let mut payload = vec![0; bytes as usize];
        for (i, (key, number)) in self.keys.iter().zip(&self.numbers).enumerate() {
            let Some(number) = number else { continue };
            Model::fill(key, *number, &mut payload);
            let (from, to) = if half == 0 { (0, bytes / 2) } else { (bytes / 2, bytes) };
            let written = self.reservation.write_at(i, from, &payload[from as usize..to as usize]);
            assert!(written.expect("within the block"), "a reserved slot is writable");
        }
    }
}

impl Held {
    fn judge(&self) -> Result<(), String> {
        if self.session.warning() == Warning::Expelled {
            return Ok(());
        }
        match Model::number(&self.key, &bytes_of(&self.view)) {
            Ok(number) if number == self.number => Ok(()),
            Ok(number) => Err(format!("a view of put {} shows put {number}", self.number)),
            Err(error) => Err(format!("in a view of put {}: {error}", self.number)),
        }
    }
}

fn bytes_of(view: &View) -> Vec<u8> {
    let mut bytes = vec![0; view.len()];
    view.copy_to(0, &mut bytes).expect("all of the view");
    bytes
}
