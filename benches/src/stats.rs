//! Medians and means of timings.

/// The middle value; of an even number of values, the lower of the two in the middle. `None` of none.
pub fn median<T: Copy + PartialOrd>(values: &[T]) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// The geometric mean of positive values. `None` of none.
pub fn geomean(values: &[f64]) -> Option<f64> {
    (!values.is_empty()).then(|| (values.iter().map(|v| v.ln()).sum::<f64>() / values.len() as f64).exp())
}

#[cfg(test)]
mod tests {
    use super::{geomean, median};

    #[test]
    fn medians_are_values_that_were_measured() {
        assert_eq!(median(&[5, 1, 9]), Some(5));
        assert_eq!(median(&[4, 1, 3, 2]), Some(2));
        assert_eq!(median::<u64>(&[]), None);
    }

    #[test]
    fn ratios_are_averaged_on_a_logarithmic_scale() {
        assert!((geomean(&[0.5, 2.0]).expect("two values") - 1.0).abs() < 1e-12);
        assert_eq!(geomean(&[]), None);
    }
}
