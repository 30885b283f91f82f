//! Tests of the numbers behind initialisers.

use tenon_graph::diagnostic::Site;
use tenon_graph::graph::Value;

use super::*;

fn parameter(name: &str, shape: &[usize], init: Initialiser) -> Parameter {
    let value = Value::new(0);
    Parameter { name: name.to_string(), shape: shape.to_vec(), init, trainable: true, site: Site::default(), value }
}

fn draw(init: Initialiser, shape: &[usize]) -> Vec<f64> {
    initialise(&parameter("w", shape, init), 1).into_iter().map(f64::from).collect()
}

/// The standard normal distribution function.
fn cumulative_normal(x: f64) -> f64 {
    0.5 * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2)
}

fn inverse_normal(p: f64) -> f64 {
    let mut block = [p; BLOCK];
    inverse_normals(&mut block);
    block[BLOCK - 1]
}

/// The mean of the `k`-th powers.
fn moment(values: &[f64], k: i32) -> f64 {
    values.iter().map(|x| x.powi(k)).sum::<f64>() / values.len() as f64
}

#[test]
fn inverse_normal_inverts_the_distribution_function() {
    for i in 1..2000 {
        let p = f64::from(i) / 2000.0;
        assert!((cumulative_normal(inverse_normal(p)) - p).abs() < 2e-9, "{p}");
    }
    assert_eq!(cumulative_normal(-2.0), BELOW_CUT);
    let smallest = 0.5 / 4_294_967_296.0;
    assert!((cumulative_normal(inverse_normal(smallest)) / smallest - 1.0).abs() < 1e-7);
    assert_eq!(inverse_normal(smallest), -inverse_normal(1.0 - smallest));
}

#[test]
fn distributions_have_their_moments() {
    // A million draws: each bound is five standard deviations of the estimate.
    let shape = [1000, 1000];
    let normal = draw(Initialiser::Normal { std: 2.0 }, &shape);
    assert!(moment(&normal, 1).abs() < 0.01, "{}", moment(&normal, 1));
    assert!((moment(&normal, 2) / 4.0 - 1.0).abs() < 0.007);
    assert!((moment(&normal, 4) / 16.0 - 3.0).abs() < 0.05);
    let truncated = draw(Initialiser::TruncatedNormal { std: 1.0 }, &shape);
    assert!(truncated.iter().all(|x| x.abs() <= 2.0));
    // Of a standard normal cut at 2: 1 - 2 * 2 * density(2) / (1 - 2 * below(-2)).
    assert!((moment(&truncated, 2) - 0.773_741).abs() < 0.005);
    let uniform = draw(Initialiser::Uniform { low: -1.0, high: 3.0 }, &shape);
    assert!(uniform.iter().all(|x| (-1.0..=3.0).contains(x)));
    assert!((moment(&uniform, 1) - 1.0).abs() < 0.006);
    let lag: f64 = normal.windows(2).map(|w| w[0] * w[1]).sum::<f64>() / 4e6;
    assert!(lag.abs() < 0.005, "{lag}");
}

#[test]
fn scaled_initialisers_count_connections() {
    let scaled = |fan, gain, distribution| Initialiser::Scaled { fan, gain, distribution };
    let deviation = |init| moment(&draw(init, &[64, 32, 3, 3]), 2).sqrt();
    let close = |found: f64, expected: f64| assert!((found / expected - 1.0).abs() < 0.03, "{found} {expected}");
    close(deviation(scaled(Fan::In, 2f64.sqrt(), Distribution::Normal)), (2.0 / 288f64).sqrt());
    close(deviation(scaled(Fan::Out, 1.0, Distribution::Uniform)), (1.0 / 576f64).sqrt());
    close(deviation(scaled(Fan::Average, 1.0, Distribution::Normal)), (2.0 / (288.0 + 576f64)).sqrt());
    let torch = draw(Initialiser::TORCH_WEIGHT, &[500, 400]);
    let largest = torch.iter().fold(0f64, |m, x| m.max(x.abs()));
    assert!(largest <= 0.05 && largest > 0.0499);
    assert_eq!(Initialiser::torch_bias(&[500, 400]), Initialiser::Uniform { low: -0.05, high: 0.05 });
}

#[test]
fn values_depend_on_seed_name_and_place_alone() {
    let normal = Initialiser::Normal { std: 1.0 };
    let whole = initialise(&parameter("w", &[300_001], normal), 7);
    assert_eq!(whole, initialise(&parameter("w", &[300_001], normal), 7));
    assert_eq!(whole[..1001], initialise(&parameter("w", &[7, 11, 13], normal), 7));
    for other in [("w", 8), ("v", 7), ("w", 7 + (1 << 32))] {
        let others = initialise(&parameter(other.0, &[1000], normal), other.1);
        assert!(others.iter().zip(&whole).all(|(a, b)| a != b), "{other:?}");
    }
    let mut bytes = vec![0; 4 * whole.len()];
    initialise_into(&parameter("w", &[300_001], normal), 7, &mut bytes);
    assert_eq!(bytes, whole.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>());
    // Checkpoints of old runs start from these numbers.
    assert_eq!(whole[..4], initialise(&parameter("w", &[4], normal), 7)[..]);
    insta::assert_debug_snapshot!(&whole[..4]);
}

#[test]
fn every_bit_stays() {
    // Runs begun by an older Tenon are repeated from the seed: no faster way to compute the numbers may change one.
    let checksum = |init| {
        let values = initialise(&parameter("w", &[400_003], init), 11);
        values.iter().fold(0u64, |sum, x| sum.wrapping_mul(0x100_0000_01b3).wrapping_add(u64::from(x.to_bits())))
    };
    assert_eq!(checksum(Initialiser::Normal { std: 0.02 }), 0x52fc_abe1_5e08_f914);
    assert_eq!(checksum(Initialiser::TruncatedNormal { std: 0.02 }), 0xc575_8ba3_d276_f6ca);
    assert_eq!(checksum(Initialiser::Uniform { low: -0.1, high: 0.3 }), 0x9132_d713_06d7_3b09);
}
