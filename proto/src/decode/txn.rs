//! Putting nested transactions together, however deep they are, with a list instead of recursion.
//!
//! Called for requests and log entries that prost has refused. A field that comes in pieces is
//! merged as protobuf has it: pieces of one message, one behind the other, are the message.

use std::ops::Range;
use std::vec::IntoIter;

use bytes::{Bytes, BytesMut};

use super::{DecodeError, Deep, Described, Fields, Flat, Value, enter, plain};
use crate::pb::etcdserverpb as pb;
use pb::request_op::Request;

/// Where the pieces of one message stand.
type Pieces = Vec<Range<usize>>;

/// Field numbers of TxnRequest and RequestOp.
const COMPARE: u32 = 1;
const SUCCESS: u32 = 2;
const FAILURE: u32 = 3;
const RANGE: u32 = 1;
const PUT: u32 = 2;
const DELETE_RANGE: u32 = 3;
const TXN: u32 = 4;

impl Deep for pb::TxnRequest {
    fn assemble(bytes: &Bytes, depth: u32) -> Result<Self, DecodeError> {
        assemble(bytes, std::iter::once(0..bytes.len()).collect(), depth)
    }
}

impl Deep for pb::InternalRaftRequest {
    fn assemble(bytes: &Bytes, depth: u32) -> Result<Self, DecodeError> {
        let (mut rest, mut txns) = (Vec::with_capacity(bytes.len()), Vec::new());
        plain::write(Self::shape(), bytes, depth, &mut rest, &mut txns)?;
        let mut request: Self =
            prost::Message::decode(Bytes::from(rest)).map_err(|_| DecodeError::Wire)?;
        if !txns.is_empty() {
            request.txn = Some(assemble(bytes, txns, enter(depth)?)?);
        }
        Ok(request)
    }
}

/// An operation of a transaction: what it may be, one after the other; the last one counts.
struct Op {
    success: bool,
    requests: IntoIter<(u32, Pieces)>,
    op: pb::RequestOp,
}

/// A transaction that is being put together.
struct Frame {
    txn: pb::TxnRequest,
    depth: u32,
    ops: IntoIter<(bool, Vec<(u32, Pieces)>)>,
    /// The one that is being put together.
    op: Option<Op>,
}

fn assemble(bytes: &Bytes, pieces: Pieces, depth: u32) -> Result<pb::TxnRequest, DecodeError> {
    // All but the innermost wait with an operation for the transaction behind them.
    let mut frames: Vec<Frame> = Vec::new();
    let mut frame = open(bytes, pieces, depth)?;
    loop {
        let Some(mut doing) = frame.op.take().or_else(|| next_op(&mut frame)) else {
            let done = Box::new(frame.txn);
            match frames.pop() {
                None => return Ok(*done),
                Some(outer) => frame = outer,
            }
            if let Some(op) = &mut frame.op {
                op.op.request = Some(Request::RequestTxn(done));
            }
            continue;
        };
        let Some((number, pieces)) = doing.requests.next() else {
            let txn = &mut frame.txn;
            let branch = if doing.success { &mut txn.success } else { &mut txn.failure };
            branch.push(doing.op);
            continue;
        };
        // The transaction, the operation, and what is in it.
        let depth = enter(frame.depth)?;
        let request = match number {
            RANGE => Some(Request::RequestRange(leaf(bytes, &pieces, depth)?)),
            PUT => Some(Request::RequestPut(leaf(bytes, &pieces, depth)?)),
            DELETE_RANGE => Some(Request::RequestDeleteRange(leaf(bytes, &pieces, depth)?)),
            _ => None,
        };
        if request.is_some() {
            doing.op.request = request;
            frame.op = Some(doing);
        } else {
            frame.op = Some(doing);
            let inner = open(bytes, pieces, depth)?;
            frames.push(std::mem::replace(&mut frame, inner));
        }
    }
}

fn next_op(frame: &mut Frame) -> Option<Op> {
    let (success, requests) = frame.ops.next()?;
    Some(Op { success, requests: requests.into_iter(), op: pb::RequestOp::default() })
}

/// Reads a transaction's own fields.
fn open(bytes: &Bytes, pieces: Pieces, depth: u32) -> Result<Frame, DecodeError> {
    let depth = enter(depth)?;
    let mut txn = pb::TxnRequest::default();
    let mut ops = Vec::new();
    for piece in pieces {
        let mut fields = Fields::new(&bytes[piece.clone()]);
        while let Some((number, value)) = fields.next_field()? {
            let Value::Len(range) = value else { continue };
            let range = piece.start + range.start..piece.start + range.end;
            match number {
                COMPARE => txn.compare.push(leaf(bytes, &[range], depth)?),
                SUCCESS | FAILURE => ops.push((number == SUCCESS, requests(bytes, range, depth)?)),
                _ => {}
            }
        }
    }
    Ok(Frame { txn, depth, ops: ops.into_iter(), op: None })
}

/// What an operation holds: runs of pieces of the same field are one request.
fn requests(
    bytes: &Bytes,
    op: Range<usize>,
    depth: u32,
) -> Result<Vec<(u32, Pieces)>, DecodeError> {
    enter(depth)?;
    let mut runs: Vec<(u32, Pieces)> = Vec::new();
    let mut fields = Fields::new(&bytes[op.clone()]);
    while let Some((number, value)) = fields.next_field()? {
        let Value::Len(range) = value else { continue };
        if !(RANGE..=TXN).contains(&number) {
            continue;
        }
        let range = op.start + range.start..op.start + range.end;
        match runs.last_mut() {
            Some((last, pieces)) if *last == number => pieces.push(range),
            _ => runs.push((number, vec![range])),
        }
    }
    Ok(runs)
}

/// A message that does not nest.
fn leaf<M: Flat>(bytes: &Bytes, pieces: &[Range<usize>], depth: u32) -> Result<M, DecodeError> {
    enter(depth)?;
    if let [piece] = pieces {
        return super::decode(bytes.slice(piece.clone()));
    }
    let mut whole = BytesMut::new();
    // Each piece must be a message of its own.
    for piece in pieces {
        super::decode::<M>(bytes.slice(piece.clone()))?;
        whole.extend_from_slice(&bytes[piece.clone()]);
    }
    super::decode(whole.freeze())
}
