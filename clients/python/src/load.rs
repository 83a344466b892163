//! Blocks to the memory of a GPU piece by piece: what a piece is, and what tells of each.

use std::mem::ManuallyDrop;

use lapis_client::{
    self as client, Birthplace, Client, DeviceFlag, DevicePiece, DevicePtr, DeviceStream, GetOptions, Key, Pool,
};
use pyo3::{
    exceptions::{PyTypeError, PyValueError},
    prelude::*,
    types::PyTuple,
};

use crate::{
    device::{addresses, stream_of},
    errors::forked,
    keys::Batch,
    results::{Got, index_of},
    wait::detached,
    words::whole,
};

/// A get in pieces: a `Got`, and what becomes of each piece. Nothing of a piece is to be looked at, nor its addresses to be
/// used, before its flag is seen or what looks is on a stream that waits for it (`wait_piece`).
#[pyclass(frozen, extends=Got, module = "lapis_kv")]
pub(crate) struct DeviceLoad {
    load: ManuallyDrop<client::DeviceLoad>,
    /// On which the copies are.
    device: u16,
    birthplace: Birthplace,
}

impl DeviceLoad {
    /// In a forked child nothing of the driver may be touched.
    fn load(&self) -> PyResult<&client::DeviceLoad> {
        if self.birthplace.is_here() { Ok(&self.load) } else { Err(forked()) }
    }

    fn piece(&self, piece: isize) -> PyResult<(&client::DeviceLoad, usize)> {
        let load = self.load()?;
        Ok((load, index_of("piece", piece, load.pieces())?))
    }
}

impl Drop for DeviceLoad {
    fn drop(&mut self) {
        if self.birthplace.is_here() {
            // SAFETY: dropped here alone, and never used afterwards.
            unsafe { ManuallyDrop::drop(&mut self.load) };
        }
    }
}

#[pymethods]
impl DeviceLoad {
    /// So many pieces as were asked for.
    #[getter]
    fn pieces(&self) -> PyResult<usize> {
        Ok(self.load()?.pieces())
    }

    /// What is put on the stream after this waits, on its GPU, until the piece and those before it are there; nobody waits
    /// here. stream: as in `get_device`; device: its GPU, without one that of the copies. Raises GpuError if a GPU is lost,
    /// and IndexError if there is no such piece.
    #[pyo3(signature = (piece, stream, *, device=None))]
    fn wait_piece(
        &self,
        py: Python<'_>,
        piece: isize,
        stream: &Bound<'_, PyAny>,
        device: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<()> {
        let (load, piece) = self.piece(piece)?;
        let device = device.map_or(Ok(self.device), |device| whole("device", device))?;
        let stream = stream_of(stream, device)?;
        detached(py, || load.wait_piece(piece, &stream))
    }

    /// Whether the copies of a piece, and of those before it, have ended.
    fn is_piece_over(&self, piece: isize) -> PyResult<bool> {
        let (load, piece) = self.piece(piece)?;
        Ok(load.is_piece_over(piece))
    }

    /// Whether all copies have ended.
    fn is_over(&self) -> PyResult<bool> {
        Ok(self.load()?.is_over())
    }

    /// Whether what was copied is what was asked for; ask when the copies have ended, and before the bytes are believed.
    /// False once the GPU is lost, or the daemon gave the client up or came back cold: then the bytes may be anything.
    fn still_valid(&self) -> PyResult<bool> {
        Ok(self.load()?.still_valid())
    }

    fn __repr__(slf: &Bound<'_, Self>) -> String {
        let (got, pieces) = (&slf.as_super().get().0, slf.get().load.pieces());
        format!(
            "<lapis_kv.DeviceLoad {} of {} keys in {pieces} pieces, {} bytes>",
            got.hits,
            got.statuses.len(),
            got.bytes
        )
    }
}

/// A piece of every block, and the memory of a GPU that the caller answers for.
struct Piece {
    offset: u64,
    bytes: u64,
    to: Vec<DevicePtr>,
    flag: Option<DeviceFlag>,
}

/// Where all pieces go, and the stream behind which they do.
pub(crate) struct Pieces {
    list: Vec<Piece>,
    stream: DeviceStream,
}

impl Pieces {
    /// What stream and addresses are is the caller's promise (docs/python.md).
    pub fn of(pieces: &Bound<'_, PyAny>, stream: &Bound<'_, PyAny>, device: &Bound<'_, PyAny>) -> PyResult<Self> {
        let expected =
            "expected a list of pieces, each (offset, nbytes, addresses) or (offset, nbytes, addresses, flag)";
        let wrong = |n: Option<usize>| {
            let which = n.map_or(String::new(), |n| format!("[{n}]"));
            PyTypeError::new_err(format!("pieces{which}: {expected}"))
        };
        let one = |(n, piece): (usize, PyResult<Bound<'_, PyAny>>)| -> PyResult<Piece> {
            let piece = piece?.cast_into::<PyTuple>().map_err(|_| wrong(Some(n)))?;
            if !(3..=4).contains(&piece.len()) {
                return Err(wrong(Some(n)));
            }
            let name = format!("pieces[{n}]");
            let flag = if piece.len() == 4 { flag(&name, &piece.get_item(3)?)? } else { None };
            let (offset, bytes) = (whole(&name, &piece.get_item(0)?)?, whole(&name, &piece.get_item(1)?)?);
            Ok(Piece { offset, bytes, to: addresses(&name, &piece.get_item(2)?)?, flag })
        };
        let list = pieces.try_iter().map_err(|_| wrong(None))?.enumerate().map(one).collect::<PyResult<_>>()?;
        Ok(Self { list, stream: stream_of(stream, whole("device", device)?)? })
    }
}

fn flag(name: &str, flag: &Bound<'_, PyAny>) -> PyResult<Option<DeviceFlag>> {
    if flag.is_none() {
        return Ok(None);
    }
    let pair = flag.cast::<PyTuple>().ok().filter(|pair| pair.len() == 2);
    let pair = pair.ok_or_else(|| PyTypeError::new_err(format!("{name}: a flag is (address, value) or None")))?;
    match whole(name, &pair.get_item(0)?)? {
        0 => Err(PyValueError::new_err(format!("{name}: a flag at 0, which is no address"))),
        at => Ok(Some(DeviceFlag { at: DevicePtr(at), value: whole(name, &pair.get_item(1)?)? })),
    }
}

pub(crate) fn get<'py>(
    py: Python<'py>,
    client: &Client,
    pool: &Pool,
    keys: &Batch<'_>,
    pieces: &Pieces,
    options: &GetOptions,
) -> PyResult<Bound<'py, DeviceLoad>> {
    let (keys, stream): (&[Key], _) = (keys, &pieces.stream);
    let list = pieces.list.iter();
    let list: Vec<DevicePiece<'_>> =
        list.map(|own| DevicePiece { offset: own.offset, bytes: own.bytes, to: &own.to, flag: own.flag }).collect();
    // SAFETY: the caller lends the memory to the copies (docs/python.md).
    let mut load = detached(py, || unsafe { client.get_device_pieces(pool, keys, &list, stream, options) })?;
    let got = Got(std::mem::take(&mut load.got));
    let (device, birthplace) = (stream.device(), Birthplace::here());
    let device_load = DeviceLoad { load: ManuallyDrop::new(load), device, birthplace };
    Bound::new(py, PyClassInitializer::from(got).add_subclass(device_load))
}
