//! What samples say: median, spread, and how sure either is. No distribution is assumed: the intervals that are shown are
//! percentile bootstraps (Efron & Tibshirani 1993, chapter 13), drawn with fixed numbers, so that a report can be made again;
//! those by which pairs of samples are called different are of order statistics.

use crate::philox::{Stream, uniform};

/// Resamples of a bootstrap.
const RESAMPLES: usize = 5000;

/// Share of resamples that a shown interval covers.
const COVERAGE: f64 = 0.95;

/// Share that the interval covers by which two programs are called different: of two hundred comparisons of equal programs
/// about one may say so, whatever the noise.
const SURE: f64 = 0.995;

/// The middle value; the mean of the two middle ones of an even number.
///
/// # Panics
/// Without values.
#[must_use]
pub fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    if sorted.len() % 2 == 1 { sorted[middle] } else { (sorted[middle - 1] + sorted[middle]) / 2.0 }
}

/// Median absolute deviation from the median, in the values' unit (not scaled to a standard deviation).
#[must_use]
pub fn median_absolute_deviation(values: &[f64]) -> f64 {
    let middle = median(values);
    median(&values.iter().map(|v| (v - middle).abs()).collect::<Vec<_>>())
}

/// Which samples lie more than 3 interquartile ranges outside the quartiles. They are shown, never dropped.
#[must_use]
pub fn outliers(values: &[f64]) -> Vec<usize> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let (low, high) = (quantile(&sorted, 0.25), quantile(&sorted, 0.75));
    let reach = 3.0 * (high - low);
    let outside = |v: f64| v < low - reach || v > high + reach;
    values.iter().enumerate().filter(|(_, v)| outside(**v)).map(|(index, _)| index).collect()
}

/// The value below which `share` of the sorted values lie, between neighbours by proportion.
fn quantile(sorted: &[f64], share: f64) -> f64 {
    let place = share * (sorted.len() - 1) as f64;
    let (below, part) = (place.floor() as usize, place.fract());
    let above = (below + 1).min(sorted.len() - 1);
    sorted[below] + (sorted[above] - sorted[below]) * part
}

/// The 95 % interval of the median.
#[must_use]
pub fn median_interval(values: &[f64]) -> [f64; 2] {
    covering(&medians(values), COVERAGE)
}

/// Medians of the resamples, ascending.
fn medians(values: &[f64]) -> Vec<f64> {
    bootstrap(|draw| median(&resample(values, 0, draw)))
}

/// Median of `new` over median of `old`, of samples that were not taken in pairs, with its 95 % interval.
#[must_use]
pub fn ratio(new: &[f64], old: &[f64]) -> Ratio {
    let drawn = bootstrap(|draw| median(&resample(new, 0, draw)) / median(&resample(old, 1, draw)));
    Ratio::of(median(new) / median(old), &drawn)
}

/// Median of the ratios of samples that were taken in pairs, with its 95 % interval. A pair shares what the machine did
/// meanwhile, so that a slow drift cancels.
#[must_use]
pub fn paired_ratio(new: &[f64], old: &[f64]) -> Ratio {
    let ratios: Vec<f64> = new.iter().zip(old).map(|(new, old)| new / old).collect();
    Ratio { sure: order_interval(&ratios, SURE), ..Ratio::of(median(&ratios), &medians(&ratios)) }
}

/// An interval that holds the true median at least as often as `share` says, whatever the distribution: from the k-th smallest
/// to the k-th largest value, since fewer than k of n values lie on one side of the median as seldom as fewer than k of n coins
/// fall on one (David & Nagaraja 2003, section 7.1). Resamples of few values promise more than they hold: of nine, the interval
/// that covers 99.5 % of them holds the median in 96 % of all cases. Everything above 0 where even all values are too few.
fn order_interval(values: &[f64], share: f64) -> [f64; 2] {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let n = sorted.len();
    // Chance that exactly `below` of the coins fall on one side, and that at most so many do.
    let mut exactly = (0..n).fold(1.0, |chance, _| chance / 2.0);
    let (mut at_most, mut k) = (exactly, 0);
    while 2.0 * at_most <= 1.0 - share && 2 * k < n {
        k += 1;
        exactly *= (n - k + 1) as f64 / k as f64;
        at_most += exactly;
    }
    if k == 0 { [0.0, f64::INFINITY] } else { [sorted[k - 1], sorted[n - k]] }
}

/// A ratio and how sure it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ratio {
    /// New over old.
    pub value: f64,
    /// Lower and upper end of the 95 % interval.
    pub interval: [f64; 2],
    /// Those of the 99.5 % interval.
    pub sure: [f64; 2],
}

impl Ratio {
    fn of(value: f64, drawn: &[f64]) -> Self {
        Ratio { value, interval: covering(drawn, COVERAGE), sure: covering(drawn, SURE) }
    }

    /// Old over new.
    #[must_use]
    pub fn inverse(self) -> Self {
        let turned = |[low, high]: [f64; 2]| [1.0 / high, 1.0 / low];
        Ratio { value: 1.0 / self.value, interval: turned(self.interval), sure: turned(self.sure) }
    }
}

/// By how much the two halves of one series differ: what the machine's drift alone makes of the same work. 0 of fewer than
/// four samples.
#[must_use]
pub fn drift(values: &[f64]) -> f64 {
    if values.len() < 4 {
        return 0.0;
    }
    let (first, second) = values.split_at(values.len() / 2);
    (median(second) / median(first) - 1.0).abs()
}

/// A statistic of every resample, ascending.
fn bootstrap(statistic: impl Fn(u64) -> f64) -> Vec<f64> {
    let mut drawn: Vec<f64> = (0..RESAMPLES as u64).map(statistic).collect();
    drawn.sort_by(f64::total_cmp);
    drawn
}

/// The middle part of sorted values that holds `share` of them.
fn covering(drawn: &[f64], share: f64) -> [f64; 2] {
    let tail = (1.0 - share) / 2.0;
    [quantile(drawn, tail), quantile(drawn, 1.0 - tail)]
}

/// As many values as there are, each drawn from all of them. `series` tells two series of one statistic apart.
fn resample(values: &[f64], series: u64, draw: u64) -> Vec<f64> {
    let first = draw * values.len() as u64;
    let pick = |i: usize| uniform(series, Stream::Bootstrap, first + i as u64) * values.len() as f64;
    (0..values.len()).map(|i| values[pick(i) as usize]).collect()
}
