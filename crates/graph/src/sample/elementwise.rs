//! Samples of the elementwise operations, select and cast.

use super::{Operand, Sample};
use crate::elementwise::{Binary, Signature, Unary};
use crate::types::DType;

/// The operations here that are in no table.
pub(super) const NAMES: &[&str] = &["select", "cast"];

pub(super) fn samples() -> Vec<Sample> {
    let mut all = Vec::new();
    for op in Unary::ALL {
        let def = op.def();
        for dtype in takes(def.signature) {
            let operand = operand(dtype, def.domain);
            all.push(Sample::one(format!("{}/{dtype}", def.name), vec![operand], move |_, x| x[0].unary(op)));
        }
    }
    for op in Binary::ALL {
        let def = op.def();
        for dtype in takes(def.signature) {
            let operands = def.domain.map(|domain| operand(dtype, domain)).into();
            all.push(Sample::one(format!("{}/{dtype}", def.name), operands, move |_, x| x[0].binary(op, x[1])));
        }
    }
    all.push(broadcasting());
    all.extend(ties());
    for dtype in DType::ALL {
        let branch = || operand(dtype, (-3.0, 3.0));
        let operands = vec![Operand::bool([3, 5]), branch(), branch()];
        all.push(Sample::one(format!("select/{dtype}"), operands, |_, x| x[0].select(x[1], x[2])));
    }
    for from in DType::ALL {
        for to in DType::ALL.into_iter().filter(|to| *to != from) {
            let operand = operand(from, (-300.0, 300.0));
            all.push(Sample::one(format!("cast/{from}/{to}"), vec![operand], move |_, x| x[0].cast(to)));
        }
    }
    all
}

fn takes(signature: Signature) -> impl Iterator<Item = DType> {
    DType::ALL.into_iter().filter(move |dtype| signature.result(*dtype).is_some())
}

fn operand(dtype: DType, (low, high): (f64, f64)) -> Operand {
    match dtype {
        DType::Bool => Operand::bool([3, 5]),
        DType::U32 | DType::U8 => Operand::new(dtype, [3, 5], (low.max(0.0), high.min(256.0))),
        DType::F32 | DType::BF16 | DType::I32 => Operand::new(dtype, [3, 5], (low, high)),
    }
}

fn broadcasting() -> Sample {
    let operands = vec![Operand::float([2, 1, 3]), Operand::float([4, 1]), Operand::float([1])];
    Sample::one("mul/broadcast", operands, |_, x| x[0] * x[1] * x[2])
}

/// Where a gradient is a convention: equal operands, and the kink at 0.
fn ties() -> Vec<Sample> {
    let whole = || Operand::float([4, 5]).within(-1.0, 2.0).whole();
    let pair = |name, op: Binary| Sample::one(name, vec![whole(), whole()], move |_, x| x[0].binary(op, x[1])).kink();
    vec![
        pair("max/ties", Binary::Max),
        pair("min/ties", Binary::Min),
        Sample::one("abs/zero", vec![whole()], |_, x| x[0].abs()).kink(),
        Sample::one("pow/zero", vec![whole().within(0.0, 3.0), whole().within(0.0, 3.0)], |_, x| x[0].pow(x[1])).kink(),
    ]
}
