//! How much memory a process took at most.

/// Returns the most memory that a process had resident, in MB; `None` where the system does not tell.
pub(crate) fn peak_rss_mb(pid: Option<u32>) -> Option<f64> {
    let status = std::fs::read_to_string(of(pid, "status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kib: f64 = line.split_whitespace().next()?.parse().ok()?;
    Some((kib * 1024.0 / 1e5).round() / 10.0)
}

/// Forgets the most memory that a process had; says whether the system let us.
pub(crate) fn forget_peak(pid: Option<u32>) -> bool {
    std::fs::write(of(pid, "clear_refs"), "5").is_ok()
}

fn of(pid: Option<u32>, file: &str) -> String {
    pid.map_or_else(|| format!("/proc/self/{file}"), |pid| format!("/proc/{pid}/{file}"))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn the_peak_is_told_and_forgotten() {
        let large = vec![1_u8; 64 << 20];
        let with = peak_rss_mb(None).expect("told");
        assert!(with > 64.0, "{with}");
        drop(std::hint::black_box(large));
        // Other tests of this process take memory at the same time, so how far it falls cannot be told.
        if forget_peak(None) {
            assert!(peak_rss_mb(Some(std::process::id())).is_some_and(|mb| mb > 1.0));
        }
        assert!(!forget_peak(Some(u32::MAX)));
        assert_eq!(peak_rss_mb(Some(u32::MAX)), None);
    }
}
