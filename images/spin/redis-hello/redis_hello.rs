//! A component for the Redis trigger of Spin 1.x in Rust: no SDK, no crates, no cargo.
//!
//! The app is `handle`: it is called for each message of the channel that the manifest names. What
//! it prints is in the container's log.

fn handle(message: &[u8]) -> Result<(), ()> {
    let text = String::from_utf8_lossy(message);
    println!("Hello from Redis: {text}");
    if text.is_empty() {
        return Err(()); // the host says so in the log; Redis sends no message twice
    }
    Ok(())
}

/// The Spin 1.x ABI for messages, by hand.
///
/// The host allocates the message with `canonical_abi_realloc`. The answer is two bytes: whether it
/// is an error, and which.
mod abi {
    use std::alloc::{self, Layout};

    #[export_name = "handle-redis-message"]
    unsafe extern "C" fn handle_redis_message(message: *mut u8, length: usize) -> *const [u8; 2] {
        static OK: [u8; 2] = [0, 0];
        static ERROR: [u8; 2] = [1, 1];
        match super::handle(std::slice::from_raw_parts(message, length)) {
            Ok(()) => &OK,
            Err(()) => &ERROR,
        }
    }

    #[no_mangle]
    unsafe extern "C" fn canonical_abi_realloc(
        _old: *mut u8,
        _old_size: usize,
        align: usize,
        new_size: usize,
    ) -> *mut u8 {
        if new_size == 0 {
            return align as *mut u8; // what an empty slice points to
        }
        let block = alloc::alloc(Layout::from_size_align_unchecked(new_size, align));
        if block.is_null() {
            std::process::abort();
        }
        block
    }
}
