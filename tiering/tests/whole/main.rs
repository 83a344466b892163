//! The core from outside: one program, since each would compile all of it again.

mod calls;
mod chains;
mod devices;
mod gpus;
mod hints;
mod learned;
mod limits;
mod model;
mod removals;
mod replay;
mod retire;
mod scene;
mod segments;
mod shares;
mod strangers;
mod world;
