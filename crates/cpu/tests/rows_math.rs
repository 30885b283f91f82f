//! Elementary functions against `f64`, over all of `f32`.

use tenon_cpu::math;

/// Every how many bit patterns one is tried; odd and prime, so that all exponents and low bits occur. With 1 the test is
/// exhaustive and takes minutes.
const STRIDE: usize = 997;

/// The distance of `y` from `exact` in units of the last place of `exact`.
fn ulps(y: f32, exact: f64) -> f64 {
    let rounded = exact as f32;
    if y.to_bits() == rounded.to_bits() || (y.is_nan() && exact.is_nan()) {
        return 0.0;
    }
    if y.is_nan() || exact.is_nan() {
        return f64::INFINITY;
    }
    if !y.is_finite() || !rounded.is_finite() {
        // The largest finite number and infinity are neighbours.
        let finite = |x: f32| if x.is_infinite() { 2f64.powi(128).copysign(x.into()) } else { x.into() };
        return (finite(y) - exact).abs() / 2f64.powi(104);
    }
    let exponent = (exact.abs().log2().floor() as i32).max(-126);
    let signed_zero = y == 0.0 && exact == 0.0;
    if signed_zero { f64::INFINITY } else { (f64::from(y) - exact).abs() / 2f64.powi(exponent - 23) }
}

fn edges() -> impl Iterator<Item = f32> {
    let powers = (-149..128).flat_map(|e| {
        let power = 2f64.powi(e) as f32;
        [power, f32::from_bits(power.to_bits() - 1), f32::from_bits(power.to_bits() + 1)]
    });
    let others =
        [0.0, f32::INFINITY, f32::NAN, f32::MAX, 1.5, 2.5, 3.0, 0.625, 0.925, 88.722_84, 88.722_84, 103.97, 17.3];
    powers.chain(others).flat_map(|x| [x, -x])
}

/// The greatest error of `f`, where it is, and the bound.
fn check(name: &str, bound: f64, f: impl Fn(f32) -> f32, exact: impl Fn(f64) -> f64) -> Option<String> {
    let all = (0..=u32::MAX).step_by(STRIDE).map(f32::from_bits);
    let mut worst = (0.0, 0.0f32);
    for x in all.chain(edges()) {
        let error = ulps(f(x), exact(x.into()));
        if error > worst.0 {
            worst = (error, x);
        }
    }
    let (error, x) = worst;
    let found =
        || format!("{name}({x:e} = {:#x}) = {:e}, not {:e}: {error:.3} ULP", x.to_bits(), f(x), exact(x.into()));
    (error > bound).then(found)
}

#[test]
fn functions_of_one_operand_keep_their_bounds() {
    let angle = |moderate: fn(f32) -> f32, large: fn(f32) -> f32| {
        move |x: f32| if x.abs() < math::LARGE_ANGLE { moderate(x) } else { large(x) }
    };
    let failures = [
        check("exp", 1.0, math::exp, f64::exp),
        check("expm1", 2.0, math::expm1, f64::exp_m1),
        check("log", 1.0, math::log, f64::ln),
        check("log1p", 2.0, math::log1p, f64::ln_1p),
        check("sqrt", 0.5, math::sqrt, f64::sqrt),
        check("rsqrt", 1.5, math::rsqrt, |x| 1.0 / x.sqrt()),
        check("sin", 1.0, angle(math::sin, math::sin_large), f64::sin),
        check("cos", 1.0, angle(math::cos, math::cos_large), f64::cos),
        check("tanh", 2.0, math::tanh, f64::tanh),
        check("erf", 2.0, math::erf, libm::erf),
        check("sigmoid", 2.0, math::sigmoid, |x| {
            let e = (-x.abs()).exp();
            (if x < 0.0 { e } else { 1.0 }) / (1.0 + e)
        }),
    ];
    let failures: Vec<String> = failures.into_iter().flatten().collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn powers_keep_their_bound_and_the_special_cases_of_ieee_754() {
    let mut failures = Vec::new();
    let mut try_pair = |a: f32, b: f32| {
        let exact = f64::from(a).powf(f64::from(b));
        let error = ulps(math::pow(a, b), exact);
        if error > 1.0 {
            failures.push(format!("pow({a:e}, {b:e}) = {:e}, not {exact:e}: {error:.3} ULP", math::pow(a, b)));
        }
    };
    let special = [
        0.0,
        1.0,
        -1.0,
        0.5,
        2.0,
        3.0,
        -2.0,
        -3.0,
        0.5,
        1e-40,
        1e30,
        8_388_609.0,
        16_777_216.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    for a in special.into_iter().flat_map(|a| [a, -a]) {
        for b in special.into_iter().flat_map(|b| [b, -b]) {
            try_pair(a, b);
        }
    }
    // A step of the golden ratio visits bases and exponents evenly.
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        f32::from_bits(state.rotate_left(13))
    };
    for _ in 0..1_000_000 {
        let (a, b) = (next(), next());
        try_pair(a, b);
        // Where results are neither 0 nor infinite.
        let base = f32::from_bits(a.to_bits() & 0x7fff_ffff);
        if base.is_normal() && base != 1.0 {
            let exponent =
                (f64::from(b.to_bits() as i32) / 2f64.powi(31) * 140.0 / f64::from(base).log2().abs()) as f32;
            try_pair(base, exponent);
        }
    }
    failures.truncate(20);
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
