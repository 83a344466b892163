//! Processes of the world of GPUs: each has a stream on which copies end later; its death leaves them under way.

use lapis_arena::hbm::CopyJob;
use lapis_config::{ClientId, GpuId, HitPolicy, Key, SlotId, Time, Wait};
use lapis_tiering::{
    face::{Caller, CommitItem, Parent, Put, Reply, Reserved},
    kept::{Kept, Tier},
};

use super::{BLOCK_BYTES, POOL, Slice, World, payload, sum};

#[derive(Clone, Debug)]
pub struct Process {
    pub id: ClientId,
    pub is_alive: bool,
    /// Slots in DRAM, and on GPUs, that it fills.
    filling: Vec<(SlotId, Key)>,
    filling_on_gpus: Vec<(GpuId, SlotId, Key)>,
}

/// A call that was not answered yet.
#[derive(Clone, Debug)]
pub enum Call {
    Put { keys: Vec<Key> },
    PutOnGpu { gpu: GpuId, keys: Vec<Key> },
    Get { keys: Vec<Key> },
    Remove,
}

/// A copy on a process's stream.
#[derive(Clone, Debug)]
pub struct Job {
    of: ClientId,
    gpu: GpuId,
    slot: SlotId,
    key: Key,
    scratch: u64,
    /// It reads what it named there; else it fills a slot.
    reads: bool,
}

fn key(chain: u64, depth: u64) -> Key {
    Key([chain, depth, 3, 0])
}

fn parent(key: &Key, before: Option<&Key>) -> Parent {
    match key.0[1].checked_sub(1) {
        None => Parent::None,
        Some(depth) if before.is_some_and(|before| (before.0[0], before.0[1]) == (key.0[0], depth)) => Parent::Previous,
        Some(depth) => Parent::Key(self::key(key.0[0], depth)),
    }
}

impl World {
    pub(super) fn connect(&mut self) {
        if self.processes.iter().filter(|process| process.is_alive).count() >= 5 {
            return;
        }
        let id = ClientId(self.client_next);
        self.client_next += 1;
        self.core().client_added(id, true);
        let (filling, filling_on_gpus) = (Vec::new(), Vec::new());
        self.processes.push(Process { id, is_alive: true, filling, filling_on_gpus });
    }

    fn someone(&mut self) -> Option<ClientId> {
        let alive: Vec<ClientId> =
            self.processes.iter().filter(|process| process.is_alive).map(|process| process.id).collect();
        (!alive.is_empty()).then(|| alive[self.rng.usize(..alive.len())])
    }

    fn process(&mut self, id: ClientId) -> &mut Process {
        self.processes.iter_mut().find(|process| process.id == id).expect("a process that is known")
    }

    fn caller(&mut self, client: ClientId, call: Call) -> Caller {
        let caller = Caller { client, token: self.token_next };
        self.token_next += 1;
        self.calls.insert(caller, call);
        caller
    }

    fn keys(&mut self) -> Vec<Key> {
        let (chain, depth) = self.key();
        (0..=depth).map(|depth| key(chain, depth)).collect()
    }

    // ---- Calls ----

    pub(super) fn begin_put(&mut self) {
        let Some(id) = self.someone() else { return };
        let keys = self.keys();
        let to = self.caller(id, Call::Put { keys: keys.clone() });
        let (now, deadline) = (self.now, Time(self.now.0 + [0, 5_000, 200_000][self.rng.usize(..3)]));
        self.core().reserve(now, to, POOL, BLOCK_BYTES, &keys, Parent::None, deadline);
    }

    pub(super) fn begin_put_on_gpu(&mut self) {
        let Some(id) = self.someone() else { return };
        let (keys, gpu, now) = (self.keys(), GpuId(self.rng.u8(..2)), self.now);
        let to = self.caller(id, Call::PutOnGpu { gpu, keys: keys.clone() });
        self.core().reserve_on_gpu(now, to, gpu, POOL, &keys, Parent::None);
    }

    pub(super) fn begin_get(&mut self) {
        let Some(id) = self.someone() else { return };
        let keys = self.keys();
        let to = self.caller(id, Call::Get { keys: keys.clone() });
        let (now, deadline) = (self.now, Time(self.now.0 + [0, 5_000, 500_000][self.rng.usize(..3)]));
        self.core().get(now, to, &[(POOL, HitPolicy::Prefix)], &keys, Wait::Filling, deadline);
    }

    pub(super) fn remove(&mut self) {
        let Some(id) = self.someone() else { return };
        let (chain, depth) = self.key();
        let (to, now) = (self.caller(id, Call::Remove), self.now);
        self.core().remove(now, to, POOL, &[key(chain, depth)]);
    }

    pub(super) fn answered(&mut self, to: Caller, reply: Reply) -> Result<(), String> {
        // A top-up is given back at once: it is nobody's call.
        if let (0, Reply::Granted { slots, .. }) = (to.token, &reply) {
            let now = self.now;
            self.core().abort(now, to.client, slots);
            return Ok(());
        }
        let Some(call) = self.calls.remove(&to) else { return Err(format!("{to:?} asked nothing: {reply:?}")) };
        let now = self.now;
        match (call, reply) {
            (_, Reply::Refused(_)) | (Call::Remove, Reply::Removed { .. }) => {}
            (Call::Put { keys }, Reply::Reserved { results }) => {
                for (key, result) in keys.into_iter().zip(results) {
                    let Reserved::Slot(slot) = result else { continue };
                    self.process(to.client).filling.push((slot, key));
                    self.dram.copy_in(slot.offset_bytes() as usize, &payload(&key));
                }
                self.commit(to.client);
            }
            (Call::PutOnGpu { gpu, keys }, Reply::Reserved { results }) => {
                for (key, result) in keys.into_iter().zip(results) {
                    let Reserved::Slot(slot) = result else { continue };
                    self.process(to.client).filling_on_gpus.push((gpu, slot, key));
                    if !self.begin_job(to.client, gpu, slot, key, false) {
                        self.process(to.client).filling_on_gpus.retain(|at| (at.0, at.1) != (gpu, slot));
                        self.core().abort_on_gpu(now, to.client, gpu, &[slot]);
                    }
                }
            }
            (Call::Get { keys }, Reply::Got { hit }) => {
                for key in &keys[..hit as usize] {
                    self.read_in_dram(key)?;
                }
                self.core().release(to);
            }
            (call, reply) => return Err(format!("{call:?} is answered {reply:?}")),
        }
        Ok(())
    }

    fn commit(&mut self, id: ClientId) {
        let filled = std::mem::take(&mut self.process(id).filling);
        let mut items: Vec<CommitItem> = Vec::new();
        for (slot, key) in filled {
            let before = items.last().map(|item| item.key);
            let sum = sum(&payload(&key));
            items.push(CommitItem { slot, key, parent: parent(&key, before.as_ref()), bytes: BLOCK_BYTES, sum });
        }
        let (now, mut puts) = (self.now, Vec::new());
        self.core().commit(now, id, POOL, &items, &mut puts);
        assert!(!puts.contains(&Put::Refused(lapis_config::Refusal::NotGranted)), "they were granted: {puts:?}");
    }

    /// A hit is in DRAM as it is answered, and stays until it is released: what takes it away in spite of that does so
    /// before the answer.
    fn read_in_dram(&mut self, key: &Key) -> Result<(), String> {
        let kept = self.core().kept();
        let Some(live) = kept.find(POOL, key).and_then(|line| kept.live(line)) else {
            return Err(format!("a hit that is not there: {key:?}"));
        };
        if !matches!(live.place.tier, Tier::Dram | Tier::DramUnverified) {
            return Err(format!("a hit that is not in DRAM: {live:?}"));
        }
        let right = payload(key);
        if live.place.sum != sum(&right)
            || self.dram.to_vec(live.place.slot.offset_bytes() as usize, right.len()) != right
        {
            return Err(format!("wrong bytes under a right key: {live:?}"));
        }
        self.tally.host_hits += 1;
        Ok(())
    }

    /// The client reads a chain from DRAM into a GPU; where the bytes go is nobody's business here.
    pub(super) fn read_into(&mut self) {
        let (chain, depth) = self.key();
        let (now, gpu) = (self.now, GpuId(self.rng.u8(..2)));
        let kept = self.core().kept();
        let Some(line) = kept.find(POOL, &key(chain, depth)) else { return };
        let bind = kept.live(line).expect("found").generation << 4;
        self.core().read_into(now, gpu, line, bind as u32, depth as u32 + 1);
    }

    // ---- Streams ----

    /// A process finds a copy on a GPU, names it, and copies it out on its stream.
    pub(super) fn read_on_gpu(&mut self) {
        let Some(id) = self.someone() else { return };
        let (chain, depth) = self.key();
        let key = key(chain, depth);
        let kept = self.core().kept();
        let Some(place) = kept.find(POOL, &key).and_then(|line| kept.device(line)) else { return };
        if self.begin_job(id, place.gpu, place.slot, key, true) {
            *self.named.entry((place.gpu, place.slot)).or_insert(0) += 1;
            self.core().kept_mut().name_on_gpu(place.gpu, place.slot, true);
        }
    }

    /// False if there is no host memory for it now.
    fn begin_job(&mut self, of: ClientId, gpu: GpuId, slot: SlotId, key: Key, reads: bool) -> bool {
        let Some(scratch) = self.scratch_free.pop() else { return false };
        let offset = scratch * u64::from(BLOCK_BYTES);
        let bytes = if reads { vec![0; BLOCK_BYTES as usize] } else { payload(&key) };
        self.scratch.copy_in(offset as usize, &bytes);
        let (host, device) = (lapis_arena::hbm::Spot::Host { extent: 1, offset }, Self::gpu_spot(gpu, slot));
        let (from, to) = if reads { (device, host) } else { (host, device) };
        let op = self.job_next;
        self.job_next += 1;
        self.jobs.insert(op, Job { of, gpu, slot, key, scratch, reads });
        self.submit(CopyJob { op, from, to, bytes: BLOCK_BYTES.into() });
        true
    }

    /// An event behind a copy has fired, or the stream failed.
    pub(super) fn job_ended(&mut self, op: u64, ok: bool) -> Result<(), String> {
        let job = self.jobs.remove(&op).ok_or("a copy that nobody began")?;
        self.scratch_free.push(job.scratch);
        let is_alive = self.process(job.of).is_alive;
        if job.reads {
            let offset = job.scratch as usize * BLOCK_BYTES as usize;
            if ok && self.scratch.to_vec(offset, BLOCK_BYTES as usize) != payload(&job.key) {
                return Err(format!("wrong bytes were read on a GPU: {job:?}"));
            }
            self.tally.reads_on_gpu += u64::from(ok);
            // Its page counts until its process has ended, and that is with its last copy.
            self.unname(job.gpu, job.slot);
            return Ok(());
        }
        let filling = &mut self.process(job.of).filling_on_gpus;
        let had = filling.len();
        filling.retain(|at| (at.0, at.1, at.2) != (job.gpu, job.slot, job.key));
        // Its GPU was lost meanwhile, with the grant; or nobody is left to commit it.
        if filling.len() == had || !is_alive {
            return Ok(());
        }
        let now = self.now;
        if !ok {
            self.core().abort_on_gpu(now, job.of, job.gpu, &[job.slot]);
            return Ok(());
        }
        let sum = if self.rng.bool() { sum(&payload(&job.key)) } else { 0 };
        let parent = parent(&job.key, None);
        let item = CommitItem { slot: job.slot, key: job.key, parent, bytes: BLOCK_BYTES, sum };
        let mut puts = Vec::new();
        self.core().commit_on_gpu(now, job.of, job.gpu, POOL, &[item], &mut puts);
        self.tally.puts_on_gpu += u64::from(puts == [Put::Stored]);
        let granted = !puts.contains(&Put::Refused(lapis_config::Refusal::NotGranted));
        if !granted && self.gpus[&job.gpu] == Slice::There {
            return Err(format!("a slot that was granted is not: {job:?}"));
        }
        Ok(())
    }

    /// Whether a process has anything to do with the GPU.
    pub(super) fn is_in_use(&self, gpu: GpuId) -> bool {
        let queued = self.queue.iter().any(|job| job.touches(gpu.0.into()));
        let fills = self.processes.iter().any(|of| of.is_alive && of.filling_on_gpus.iter().any(|at| at.0 == gpu));
        queued || fills || self.jobs.values().any(|job| job.gpu == gpu)
    }

    fn unname(&mut self, gpu: GpuId, slot: SlotId) {
        let count = self.named.get_mut(&(gpu, slot)).expect("counted when it was named");
        *count -= 1;
        if *count == 0 {
            self.named.remove(&(gpu, slot));
            self.core().kept_mut().name_on_gpu(gpu, slot, false);
        }
    }

    // ---- Deaths ----

    /// SIGKILL. What is on its stream goes on; its slots are its own until that has ended.
    pub(super) fn kill_process(&mut self) {
        let Some(id) = self.someone() else { return };
        self.process(id).is_alive = false;
        self.tally.deaths_mid_copy += u64::from(self.jobs.values().any(|job| job.of == id));
        self.calls.retain(|caller, _| caller.client != id);
        self.core().client_lost(id);
    }

    /// Processes of which nothing is left are proven gone.
    pub(super) fn bury(&mut self) {
        let busy = |id: ClientId| self.jobs.values().any(|job| job.of == id);
        let gone: Vec<ClientId> =
            self.processes.iter().filter(|of| !of.is_alive && !busy(of.id)).map(|of| of.id).collect();
        for id in gone {
            self.processes.retain(|process| process.id != id);
            self.core().client_gone(id);
        }
    }

    pub(super) fn end_processes(&mut self) {
        while self.processes.iter().any(|process| process.is_alive) {
            self.kill_process();
        }
    }

    /// After a new start: who lives comes back and goes on with what it fills.
    pub(super) fn resume_all(&mut self) {
        let gpus = self.gpus.clone();
        for process in &mut self.processes {
            process.filling_on_gpus.retain(|at| gpus[&at.0] == Slice::There);
        }
        for process in self.processes.clone().into_iter().filter(|process| process.is_alive) {
            let writing: Vec<SlotId> = process.filling.iter().map(|at| at.0).collect();
            let on_gpus: Vec<(GpuId, SlotId)> = process.filling_on_gpus.iter().map(|at| (at.0, at.1)).collect();
            self.core().client_resumed(process.id, &writing);
            self.core().client_resumed_on_gpus(process.id, &on_gpus);
        }
    }
}
