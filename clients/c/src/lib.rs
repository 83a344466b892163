//! The C ABI of `lapis_client`: `include/lapis.h` is made of this crate's public items and is what a caller reads.
//!
//! What C promises is said once, at the head of the header; `unsafe` functions here rely on that and on nothing else.
//!
//! A function does three things: it turns what C gave into Rust values (`raw`), calls the client, and turns the answer
//! back. No function decides anything.
//!
//! Invariant: every `extern "C"` function runs within `guard`: no panic leaves it.
//! Invariant: a handle of a client's pool, view, ticket or reservation is of use only with that client; it knows its own,
//! so no call can be given a foreign one.
#![expect(non_camel_case_types, reason = "the names of C")]

// The order of these groups is that of the header.
mod codes;
mod guard;
mod version;

mod client;
mod names;
mod pool;

mod get;
mod look;
mod put;

mod device;
mod load;

mod reserve;
mod ticket;
mod view;

mod bytes;
mod forget;
mod object;

// Not in the header.
mod error;
mod lists;
mod raw;

/// What the header promises of threads.
const _: () = {
    const fn by_any_threads<T: Send + Sync>() {}
    const fn by_one_after_the_other<T: Send>() {}
    by_any_threads::<client::lapis_client_t>();
    by_any_threads::<pool::lapis_pool_t>();
    by_any_threads::<bytes::lapis_bytes_t>();
    by_any_threads::<device::lapis_device_got_t>();
    by_any_threads::<load::lapis_device_load_t>();
    by_one_after_the_other::<view::lapis_views_t>();
    by_one_after_the_other::<ticket::lapis_get_ticket_t>();
    by_one_after_the_other::<ticket::lapis_put_ticket_t>();
    by_one_after_the_other::<reserve::lapis_reservation_t>();
};
