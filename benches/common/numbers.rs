//! The numbers of several rounds: their median and quantiles, and how they are printed.

use std::time::Duration;

/// The middle value; of an even number of values, the mean of the two in the middle.
pub(crate) fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => f64::NAN,
        odd if !odd.is_multiple_of(2) => sorted[middle],
        _ => (sorted[middle - 1] + sorted[middle]) / 2.0,
    }
}

pub(crate) fn sorted(mut times: Vec<Duration>) -> Vec<Duration> {
    times.sort_unstable();
    times
}

/// The µs that this share of the times does not exceed. The times are sorted.
pub(crate) fn quantile_us(times: &[Duration], share: f64) -> f64 {
    let rank = (times.len() as f64 * share) as usize;
    times.get(rank).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
}

/// `median (least–greatest)`, or the value alone if all are equal.
pub(crate) fn cell(values: &[f64]) -> String {
    let least = values.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if least == greatest {
        return number(least);
    }
    format!("{} ({}–{})", number(median(values)), number(least), number(greatest))
}

/// The value to three digits or as a whole number, with commas between thousands; a dash if it is NaN.
pub(crate) fn number(value: f64) -> String {
    if value.is_nan() {
        return "–".to_owned();
    }
    if value.abs() < 99.95 {
        return if value.abs() < 9.995 { format!("{value:.2}") } else { format!("{value:.1}") };
    }
    let digits = format!("{value:.0}");
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
