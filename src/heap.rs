//! One heap for all threads: the only unsafe call of the daemon.

/// Has all threads share one heap: by default glibc gives each blocking thread its own, and what one
/// of them frees is of no use to the others.
#[allow(unsafe_code, reason = "glibc's one way to limit its heaps, besides the environment")]
pub(crate) fn share() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt sets a number inside the allocator; it is called before any thread is started.
    if unsafe { libc::mallopt(libc::M_ARENA_MAX, 1) } == 0 {
        tracing::warn!("cannot limit the number of heaps; expect to use more memory");
    }
}
