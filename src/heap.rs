//! One heap for all threads, and no haste to give memory back: the only unsafe calls of the daemon.

/// Memory that stays with the daemon once it was needed, in bytes.
const KEPT: libc::c_int = 1 << 20;

/// Has all threads share one heap: by default glibc gives each blocking thread its own, and what one
/// of them frees is of no use to the others. What a call frees is kept for the next one.
#[allow(unsafe_code, reason = "glibc's one way to limit its heaps, besides the environment")]
pub(crate) fn share() {
    #[cfg(target_env = "gnu")]
    for (parameter, value) in [(libc::M_ARENA_MAX, 1), (libc::M_TRIM_THRESHOLD, KEPT)] {
        // SAFETY: mallopt sets a number inside the allocator; it is called before any thread is started.
        if unsafe { libc::mallopt(parameter, value) } == 0 {
            tracing::warn!("cannot set up the heap; expect to use more memory and time");
        }
    }
}
