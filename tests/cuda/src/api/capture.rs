//! Graphs that are captured from a stream. What is put on the stream meanwhile runs all the same, and the graph is empty.

use cudarc::driver::sys::{CUgraph, CUresult, CUstream, CUstreamCaptureMode};

use super::{put, stream::enter_stream, take};
use crate::{
    capture::{Capture, MODE},
    world::enter,
};

api! {
    fn cuStreamBeginCapture_v2(stream: CUstream, mode: CUstreamCaptureMode) {
        let (mut held, stream) = enter_stream(stream, CALL)?;
        if held.capture.is_some() {
            return Err(CUresult::CUDA_ERROR_ILLEGAL_STATE);
        }
        held.capture = Some(Capture { stream, mode, is_broken: false });
        Ok(())
    }

    fn cuStreamEndCapture(stream: CUstream, graph: *mut CUgraph) {
        let (mut held, stream) = enter_stream(stream, CALL)?;
        let capture = held.capture.take_if(|capture| capture.stream == stream);
        let capture = capture.ok_or(CUresult::CUDA_ERROR_ILLEGAL_STATE)?;
        put(graph, std::ptr::null_mut())?;
        if capture.is_broken { Err(CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED) } else { Ok(()) }
    }

    fn cuThreadExchangeStreamCaptureMode(mode: *mut CUstreamCaptureMode) {
        drop(enter()?);
        let wanted = take(mode.cast_const())?;
        put(mode, MODE.replace(wanted))
    }
}
