//! Load generator, limits, replay, demo.
