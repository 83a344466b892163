//! Calls that do not block: begun now, polled later. The client's descriptor says when polling may help.
//!
//! Invariant: a ticket's job is dropped before the lists that it borrows.

use std::{
    ffi::{c_int, c_void},
    mem::MaybeUninit,
    sync::Weak,
    time::Instant,
};

use lapis_client::{Client, Dst, GetTicket, PutTicket, Src};

use crate::{
    error::CallError,
    get::{self, lapis_get_options_t},
    guard,
    lists::Lists,
    names::lapis_key_t,
    pool::{self, lapis_pool_t},
    put::{self, lapis_put_options_t},
    raw,
};

/// A get under way. One thread at a time may use it.
pub struct lapis_get_ticket_t(Ticket<GetTicket<'static>>);

/// A put under way. One thread at a time may use it.
pub struct lapis_put_ticket_t(Ticket<PutTicket<'static>>);

struct Ticket<J> {
    /// Gone once it was answered. Dropped before what it borrows, which is declared below it.
    job: Option<J>,
    lists: Lists,
    client: Weak<Client>,
}

impl<J> Ticket<J> {
    /// The job, if it may go on.
    fn job(&mut self) -> Result<&mut J, CallError> {
        if self.client.strong_count() == 0 {
            return Err(CallError::Closed { what: "ticket" });
        }
        self.job.as_mut().ok_or(CallError::Used { what: "ticket" })
    }

    /// The length of the list that the answer fills.
    fn keys_count(&self) -> usize {
        // SAFETY: used at once, while the lists are there.
        unsafe { self.lists.keys() }.len()
    }
}

/// lapis_get_into() without waiting: nothing is copied before the first poll. `dst` belongs to the ticket until it was
/// answered or freed; keys and options need not outlive this call. Freed by lapis_get_ticket_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_begin_get(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    dst: *mut c_void,
    dst_bytes: usize,
    options: *const lapis_get_options_t,
    ticket: Option<&mut MaybeUninit<*mut lapis_get_ticket_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(ticket, "ticket")?;
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let lists = Lists::new(&unsafe { raw::keys(keys, keys_count) }?, &[]);
        // SAFETY: the caller's promise: until the ticket was answered or freed.
        let dst = unsafe { raw::dst(dst, dst_bytes) }?;
        // SAFETY: the caller's promise.
        raw::give(place, unsafe { begin_get(pool, lists, dst, options) }?);
        Ok(())
    })
}

/// lapis_get_into_vectors() without waiting, as lapis_begin_get(). The vectors themselves need not outlive this call,
/// only the memory that they name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_begin_get_vectors(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    vectors: *const libc::iovec,
    vectors_count: usize,
    options: *const lapis_get_options_t,
    ticket: Option<&mut MaybeUninit<*mut lapis_get_ticket_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(ticket, "ticket")?;
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let lists = unsafe { lists(pool, keys, keys_count, vectors, vectors_count) }?;
        // SAFETY: the caller's promise of the memory; the list itself goes after the job that uses it.
        let dst = unsafe { Dst::raw(lists.vectors()) };
        // SAFETY: the caller's promise.
        raw::give(place, unsafe { begin_get(pool, lists, dst, options) }?);
        Ok(())
    })
}

/// # Safety
/// `dst` is good until the ticket was answered or freed; the options as for [`raw::growing`].
unsafe fn begin_get(
    pool: &lapis_pool_t,
    lists: Lists,
    dst: Dst<'static>,
    options: *const lapis_get_options_t,
) -> Result<lapis_get_ticket_t, CallError> {
    // SAFETY: the caller's promise.
    let options = unsafe { get::get_options(options) }?;
    // SAFETY: the lists go after the job (`Ticket`).
    let job = pool.client()?.begin_get(&pool.pool, unsafe { lists.keys() }, dst, &options)?;
    Ok(lapis_get_ticket_t(Ticket { job: Some(job), lists, client: pool.client.clone() }))
}

/// Goes on without waiting. `done` becomes true once: when all has come or the deadline is over; then `hit_bytes` and
/// `hits` are as lapis_get_into() has them, and the ticket is of no more use than to be freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_get_ticket_poll(
    ticket: Option<&mut lapis_get_ticket_t>,
    done: Option<&mut MaybeUninit<bool>>,
    hit_bytes: *mut u32,
    hits: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let ticket = &mut ticket.ok_or(CallError::Null { argument: "ticket" })?.0;
        let done = raw::place(done, "done")?;
        // SAFETY: the caller's promise.
        let hit_bytes = unsafe { raw::list_out(hit_bytes, ticket.keys_count(), "hit_bytes") }?;
        let got = ticket.job()?.poll()?;
        if let Some(got) = &got {
            get::answer(got, hit_bytes, hits);
            ticket.job = None;
        }
        done.write(got.is_some());
        Ok(())
    })
}

/// Microseconds until poll says done at the latest; 0 when it was answered.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_get_ticket_left_us(
    ticket: Option<&lapis_get_ticket_t>,
    left_us: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    guard::status(|| {
        let ticket = &ticket.ok_or(CallError::Null { argument: "ticket" })?.0;
        raw::place(left_us, "left_us")?.write(left(ticket.job.as_ref().map(GetTicket::deadline)));
        Ok(())
    })
}

/// Frees a ticket; what has not come by then is given up. Null is no mistake.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_get_ticket_free(ticket: Option<Box<lapis_get_ticket_t>>) -> c_int {
    guard::status(|| {
        drop(ticket);
        Ok(())
    })
}

/// lapis_put_from() without waiting: nothing is copied before the first poll. `src` belongs to the ticket until it was
/// answered or freed; keys, parent and options need not outlive this call. Freed by lapis_put_ticket_free().
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_begin_put(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    parent: *const lapis_key_t,
    src: *const c_void,
    src_bytes: usize,
    options: *const lapis_put_options_t,
    ticket: Option<&mut MaybeUninit<*mut lapis_put_ticket_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(ticket, "ticket")?;
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let lists = Lists::new(&unsafe { raw::keys(keys, keys_count) }?, &[]);
        // SAFETY: the caller's promise: until the ticket was answered or freed.
        let src = unsafe { raw::src(src, src_bytes) }?;
        // SAFETY: the caller's promise.
        raw::give(place, unsafe { begin_put(pool, lists, parent, src, options) }?);
        Ok(())
    })
}

/// lapis_put_from_vectors() without waiting, as lapis_begin_put(). The vectors themselves need not outlive this call,
/// only the memory that they name.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_begin_put_vectors(
    pool: Option<&lapis_pool_t>,
    keys: *const lapis_key_t,
    keys_count: usize,
    parent: *const lapis_key_t,
    vectors: *const libc::iovec,
    vectors_count: usize,
    options: *const lapis_put_options_t,
    ticket: Option<&mut MaybeUninit<*mut lapis_put_ticket_t>>,
) -> c_int {
    guard::status(|| {
        let place = raw::handle_place(ticket, "ticket")?;
        let pool = pool::named(pool)?;
        // SAFETY: the caller's promise.
        let lists = unsafe { lists(pool, keys, keys_count, vectors, vectors_count) }?;
        // SAFETY: the caller's promise of the memory; the list itself goes after the job that uses it.
        let src = unsafe { Src::raw(lists.vectors()) };
        // SAFETY: the caller's promise.
        raw::give(place, unsafe { begin_put(pool, lists, parent, src, options) }?);
        Ok(())
    })
}

/// # Safety
/// `src` is good until the ticket was answered or freed; parent and options as for [`raw`].
unsafe fn begin_put(
    pool: &lapis_pool_t,
    lists: Lists,
    parent: *const lapis_key_t,
    src: Src<'static>,
    options: *const lapis_put_options_t,
) -> Result<lapis_put_ticket_t, CallError> {
    // SAFETY: the caller's promise.
    let (options, parent) = unsafe { (put::put_options(options)?, raw::key(parent)) };
    // SAFETY: the lists go after the job (`Ticket`).
    let job = pool.client()?.begin_put(&pool.pool, unsafe { lists.keys() }, parent, src, &options)?;
    Ok(lapis_put_ticket_t(Ticket { job: Some(job), lists, client: pool.client.clone() }))
}

/// Goes on without waiting; copies as far as there are slots. `done` becomes true once: when all results are there or the
/// deadline is over; then `results` and `stored` are as lapis_put_from() has them, and the ticket is of no more use than
/// to be freed.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn lapis_put_ticket_poll(
    ticket: Option<&mut lapis_put_ticket_t>,
    done: Option<&mut MaybeUninit<bool>>,
    results: *mut i32,
    stored: Option<&mut MaybeUninit<usize>>,
) -> c_int {
    guard::status(|| {
        let ticket = &mut ticket.ok_or(CallError::Null { argument: "ticket" })?.0;
        let done = raw::place(done, "done")?;
        // SAFETY: the caller's promise.
        let results = unsafe { raw::list_out(results, ticket.keys_count(), "results") }?;
        let put = ticket.job()?.poll()?;
        if let Some(put) = &put {
            put::answer(put, results, stored);
            ticket.job = None;
        }
        done.write(put.is_some());
        Ok(())
    })
}

/// Microseconds until poll says done at the latest; 0 when it was answered.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_put_ticket_left_us(
    ticket: Option<&lapis_put_ticket_t>,
    left_us: Option<&mut MaybeUninit<u64>>,
) -> c_int {
    guard::status(|| {
        let ticket = &ticket.ok_or(CallError::Null { argument: "ticket" })?.0;
        raw::place(left_us, "left_us")?.write(left(ticket.job.as_ref().map(PutTicket::deadline)));
        Ok(())
    })
}

/// Frees a ticket; what was not stored by then may be or not. Null is no mistake.
#[unsafe(no_mangle)]
pub extern "C" fn lapis_put_ticket_free(ticket: Option<Box<lapis_put_ticket_t>>) -> c_int {
    guard::status(|| {
        drop(ticket);
        Ok(())
    })
}

/// # Safety
/// As for [`raw`].
unsafe fn lists(
    pool: &lapis_pool_t,
    keys: *const lapis_key_t,
    keys_count: usize,
    vectors: *const libc::iovec,
    vectors_count: usize,
) -> Result<Lists, CallError> {
    // SAFETY: the caller's promise.
    let (keys, vectors) = unsafe { (raw::keys(keys, keys_count)?, raw::vectors(vectors, vectors_count, &pool.pool)?) };
    Ok(Lists::new(&keys, vectors))
}

fn left(until: Option<Instant>) -> u64 {
    let left = until.map(|until| until.saturating_duration_since(Instant::now())).unwrap_or_default();
    u64::try_from(left.as_micros()).unwrap_or(u64::MAX)
}
