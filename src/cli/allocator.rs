//! The allocator: glibc's gives freed memory back to the system.
//!
//! As it comes, glibc raises the size from which a block is mapped by itself, after such a block was freed,
//! up to 32 MiB. A hub whose messages are large then keeps twice that for each of its heaps, of which it has
//! eight for each processor: more than a hundred megabytes after an attack that is over.

/// Sets the allocator's limits. Does nothing where the allocator is another.
pub(super) fn tune() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    glibc::tune();
}

#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod glibc {
    use std::ffi::c_int;

    /// The size from which a block is mapped by itself, and unmapped when it is freed. Higher: freed memory
    /// stays with the process. Lower: more system calls.
    const MAPPED: c_int = 128 << 10;

    #[allow(unsafe_code, reason = "there is no safe function for these settings")]
    pub(super) fn tune() {
        let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
        // As many heaps as there are threads that run at once. More: each keeps some freed memory. Fewer:
        // threads wait for each other.
        let heaps = c_int::try_from(threads).unwrap_or(c_int::MAX);
        // SAFETY: `mallopt` takes two numbers and is safe to call at any time. A number it does not know is
        // ignored.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED);
            libc::mallopt(libc::M_ARENA_MAX, heaps);
        }
    }
}
