//! The known name that somebody may have meant. Pure.

/// The candidate nearest to `given`, if it is near enough to be what was meant.
pub(crate) fn nearest<'a>(given: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let given = given.to_lowercase();
    let (distance, name) = candidates.map(|name| (distance(&given, &name.to_lowercase()), name)).min()?;
    (distance <= 2.max(given.len() / 4)).then_some(name)
}

/// Like [`nearest`] over option names; the last part alone counts too: the right word under the wrong table.
pub(crate) fn nearest_option<'a>(given: &str, names: impl Iterator<Item = &'a str> + Clone) -> Option<&'a str> {
    let last = |name: &'a str| name.rsplit('.').next().unwrap_or(name);
    let word = given.rsplit('.').next().unwrap_or(given);
    let same_word = || names.clone().find(|name| last(name) == word);
    nearest(given, names.clone()).or_else(same_word)
}

/// Insertions, deletions, changes and swaps of neighbours that make one text of the other.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(100).collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for i in 0..=a.len() {
        for j in 0..=b.len() {
            rows[i][j] = if i == 0 || j == 0 {
                i + j
            } else {
                let change = usize::from(a[i - 1] != b[j - 1]);
                let swap = i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1];
                let swapped = if swap { rows[i - 2][j - 2] + 1 } else { usize::MAX };
                swapped.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + change)
            };
        }
    }
    rows[a.len()][b.len()]
}

#[test]
fn a_slip_of_the_finger_is_recognised_and_nonsense_is_not() {
    let names = ["dram.bytes", "server.socket", "metrics.listen"];
    let of = |given| nearest_option(given, names.into_iter());
    assert_eq!(of("dram.byts"), Some("dram.bytes"));
    assert_eq!(of("dram.bytse"), Some("dram.bytes"));
    assert_eq!(of("server.listen"), Some("metrics.listen"));
    assert_eq!(of("colour"), None);
}
