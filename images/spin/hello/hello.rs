//! Hello world for Spin 1.x in Rust: no SDK, no crates, no cargo.
//!
//! The app is `handle`. What an SDK would generate is the module `spin`.

#[path = "../../rust/spin.rs"]
pub mod spin;

use spin::{Request, Response};

fn handle(_request: Request) -> Response {
    Response::new(200)
        .header("content-type", "text/plain")
        .body("Hello world from Spin!")
}
