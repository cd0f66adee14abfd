//! A component of Spin 1.x that uses Redis, in Rust: no SDK, no crates, no cargo.
//!
//!   GET  /visits    counts up and answers with the number
//!   GET  /note      the text that was kept, 404 if there is none
//!   PUT  /note      keeps the body
//!   POST /messages  publishes the body on the channel `messages`
//!
//! The app is `handle`, the rest is what an SDK would generate. Where the server is, it asks for by
//! `spin-config`: see the manifest.

use abi::{Request, Response};

const CHANNEL: &str = "messages";

fn handle(request: Request) -> Response {
    let address = match config::get("redis_address") {
        Ok(address) => address,
        Err(reason) => return Response::text(500, format!("no address: {reason}\n")),
    };
    let result = match (request.method, request.path()) {
        (abi::GET, "/visits") => {
            redis::incr(&address, "visits").map(|count| Response::text(200, format!("{count}\n")))
        }
        (abi::GET, "/note") => redis::get(&address, "note").map(|note| match note.len() {
            0 => Response::text(404, "there is no note\n".into()),
            _ => Response::new(200, note),
        }),
        (abi::PUT, "/note") => redis::set(&address, "note", &request.body)
            .map(|()| Response::text(200, "kept\n".into())),
        (abi::POST, "/messages") => redis::publish(&address, CHANNEL, &request.body)
            .map(|()| Response::text(200, "published\n".into())),
        _ => return Response::text(404, "not found\n".into()),
    };
    // The host's log says why: the error of this interface has no text.
    result.unwrap_or_else(|redis::Error| Response::text(502, "Redis failed\n".into()))
}

/// The interface `outbound-redis`, as far as this app uses it.
mod redis {
    use crate::abi::{take, Area};

    /// A function's only error.
    pub struct Error;

    #[link(wasm_import_module = "outbound-redis")]
    extern "C" {
        #[link_name = "get"]
        fn host_get(a: *const u8, a_len: usize, key: *const u8, key_len: usize, result: *mut Area);
        #[link_name = "incr"]
        fn host_incr(a: *const u8, a_len: usize, key: *const u8, key_len: usize, result: *mut Area);
        #[link_name = "set"]
        fn host_set(
            a: *const u8,
            a_len: usize,
            key: *const u8,
            key_len: usize,
            value: *const u8,
            value_len: usize,
            result: *mut Area,
        );
        #[link_name = "publish"]
        fn host_publish(
            a: *const u8,
            a_len: usize,
            channel: *const u8,
            channel_len: usize,
            payload: *const u8,
            payload_len: usize,
            result: *mut Area,
        );
    }

    /// The value of a key, empty if there is none.
    pub fn get(address: &str, key: &str) -> Result<Vec<u8>, Error> {
        let mut area = Area::new();
        unsafe { host_get(address.as_ptr(), address.len(), key.as_ptr(), key.len(), &mut area) };
        area.check()?;
        Ok(unsafe { take(area.u32_at(4), area.u32_at(8)) })
    }

    pub fn incr(address: &str, key: &str) -> Result<i64, Error> {
        let mut area = Area::new();
        unsafe { host_incr(address.as_ptr(), address.len(), key.as_ptr(), key.len(), &mut area) };
        area.check()?;
        Ok(i64::from_le_bytes(area.0[8..16].try_into().unwrap()))
    }

    pub fn set(address: &str, key: &str, value: &[u8]) -> Result<(), Error> {
        let mut area = Area::new();
        let (a, k, v) = (address.as_ptr(), key.as_ptr(), value.as_ptr());
        unsafe { host_set(a, address.len(), k, key.len(), v, value.len(), &mut area) };
        area.check()
    }

    pub fn publish(address: &str, channel: &str, payload: &[u8]) -> Result<(), Error> {
        let mut area = Area::new();
        let (a, c, p) = (address.as_ptr(), channel.as_ptr(), payload.as_ptr());
        unsafe { host_publish(a, address.len(), c, channel.len(), p, payload.len(), &mut area) };
        area.check()
    }

    impl Area {
        fn check(&self) -> Result<(), Error> {
            if self.is_error() { Err(Error) } else { Ok(()) }
        }
    }
}

/// The interface `spin-config`.
mod config {
    use crate::abi::{take, Area};

    #[link(wasm_import_module = "spin-config")]
    extern "C" {
        #[link_name = "get-config"]
        fn host_get_config(key: *const u8, key_len: usize, result: *mut Area);
    }

    /// The value of one of the component's variables, or why there is none.
    pub fn get(key: &str) -> Result<String, String> {
        let mut area = Area::new();
        unsafe { host_get_config(key.as_ptr(), key.len(), &mut area) };
        // An error is a case, at 4, and its text.
        let at = if area.is_error() { 8 } else { 4 };
        let text = unsafe { take(area.u32_at(at), area.u32_at(at + 4)) };
        let text = String::from_utf8_lossy(&text).into_owned();
        if area.is_error() { Err(text) } else { Ok(text) }
    }
}

/// The Spin 1.x ABI for HTTP, by hand; `images/spin/hello/hello.rs` explains it.
pub mod abi {
    use std::alloc::{self, Layout};

    pub const GET: u32 = 0;
    pub const POST: u32 = 1;
    pub const PUT: u32 = 2;

    /// Where the host puts a result: first whether it is an error, then the value.
    #[repr(C, align(8))]
    pub struct Area(pub [u8; 16]);

    impl Area {
        pub fn new() -> Self {
            Area([0; 16])
        }

        pub fn is_error(&self) -> bool {
            self.0[0] != 0
        }

        pub fn u32_at(&self, at: usize) -> u32 {
            u32::from_le_bytes(self.0[at..at + 4].try_into().unwrap())
        }
    }

    /// Takes over what the host has allocated with `canonical_abi_realloc`.
    pub unsafe fn take(pointer: u32, length: u32) -> Vec<u8> {
        Vec::from_raw_parts(pointer as *mut u8, length as usize, length as usize)
    }

    pub struct Request {
        pub method: u32,
        pub uri: String,
        pub body: Vec<u8>,
    }

    impl Request {
        pub fn path(&self) -> &str {
            self.uri.split('?').next().unwrap()
        }
    }

    #[repr(C)] // 28 bytes: status at 0, headers at 4, body at 16
    pub struct Response {
        status: u16,
        headers: OptionalList,
        body: OptionalList,
    }

    #[repr(C)]
    struct OptionalList {
        is_some: u8,
        pointer: *const u8,
        length: usize,
    }

    impl Response {
        pub fn new(status: u16, body: Vec<u8>) -> Self {
            let body = Box::leak(body.into_boxed_slice());
            Response {
                status,
                headers: OptionalList { is_some: 0, pointer: std::ptr::null(), length: 0 },
                body: OptionalList { is_some: 1, pointer: body.as_ptr(), length: body.len() },
            }
        }

        pub fn text(status: u16, text: String) -> Self {
            Response::new(status, text.into_bytes())
        }
    }

    #[export_name = "handle-http-request"]
    unsafe extern "C" fn handle_http_request(
        method: u32,
        uri: u32,
        uri_length: u32,
        _headers: u32,
        _headers_length: u32,
        _params: u32,
        _params_length: u32,
        _body_is_some: u32,
        body: u32,
        body_length: u32,
    ) -> *const Response {
        let response = super::handle(Request {
            method,
            uri: String::from_utf8_unchecked(take(uri, uri_length)), // the ABI promises UTF-8
            body: take(body, body_length),
        });
        Box::leak(Box::new(response))
    }

    #[no_mangle]
    unsafe extern "C" fn canonical_abi_realloc(
        _old: *mut u8,
        _old_size: usize,
        align: usize,
        new_size: usize,
    ) -> *mut u8 {
        if new_size == 0 {
            return align as *mut u8; // what an empty Vec points to
        }
        let block = alloc::alloc(Layout::from_size_align_unchecked(new_size, align));
        if block.is_null() {
            std::process::abort();
        }
        block
    }

    #[no_mangle]
    unsafe extern "C" fn canonical_abi_free(pointer: *mut u8, size: usize, align: usize) {
        if size > 0 {
            alloc::dealloc(pointer, Layout::from_size_align_unchecked(size, align));
        }
    }
}
