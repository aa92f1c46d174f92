//! Medians, and how sure one can be of their ratio.

use crate::random::Random;

/// Resamples per interval.
const RESAMPLES: usize = 10_000;

/// A ratio with the interval that holds it with 95 % confidence.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratio {
    pub(crate) value: f64,
    pub(crate) low: f64,
    pub(crate) high: f64,
}

/// Nearest-rank quantile; `q` of 0.5 is the median for odd counts.
pub(crate) fn quantile(values: &[f64], q: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (q * (sorted.len() as f64 - 1.0)).round();
    sorted[rank as usize]
}

pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    let middle = sorted.len() / 2;
    let (low, &mut upper, _) = sorted.select_nth_unstable_by(middle, f64::total_cmp);
    let odd = values.len() % 2 == 1;
    if odd { upper } else { (low.iter().copied().fold(f64::MIN, f64::max) + upper) / 2.0 }
}

/// Ratio of the medians of two paired series, with a percentile bootstrap over the pairs.
pub(crate) fn ratio(ours: &[f64], theirs: &[f64]) -> Ratio {
    let count = ours.len().min(theirs.len());
    let mut random = Random::new(42);
    let (mut some_ours, mut some_theirs) = (vec![0.0; count], vec![0.0; count]);
    let resample = |_| {
        for slot in 0..count {
            let pair = random.below(count);
            some_ours[slot] = ours[pair];
            some_theirs[slot] = theirs[pair];
        }
        median(&some_ours) / median(&some_theirs)
    };
    let ratios: Vec<f64> = (0..RESAMPLES).map(resample).collect();
    Ratio {
        value: median(ours) / median(theirs),
        low: quantile(&ratios, 0.025),
        high: quantile(&ratios, 0.975),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_quantiles_of_small_series() {
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), 2.5);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(quantile(&hundred, 0.99), 99.0);
    }

    #[test]
    fn the_interval_of_a_constant_ratio_is_a_point_and_noise_widens_it() {
        let theirs: Vec<f64> = (10..60).map(f64::from).collect();
        let half: Vec<f64> = theirs.iter().map(|value| value / 2.0).collect();
        let exact = ratio(&half, &theirs);
        assert_eq!((exact.low, exact.value, exact.high), (0.5, 0.5, 0.5));
        let shuffled: Vec<f64> = theirs.iter().rev().copied().collect();
        let noisy = ratio(&shuffled, &theirs);
        assert!(noisy.low < 1.0 && noisy.high > 1.0, "{noisy:?}");
    }
}
