//! The Spin 1.x ABI for HTTP components in Rust: no SDK, no crates. A component is one file, which has
//! this one as a module. Its `handle` is called for each request:
//!
//!     pub mod spin;
//!     use spin::{Request, Response};
//!
//!     fn handle(request: Request) -> Response {
//!         Response::new(200).header("content-type", "text/plain").body("Hello")
//!     }
//!
//!     rustc --target wasm32-wasi --crate-type cdylib -C opt-level=s -C strip=symbols app.rs
//!
//! How a request comes into this module's memory and how the response leaves it: strings and lists
//! are a pointer and a length. The host allocates what it passes in with
//! `canonical_abi_realloc`, and it is ours from then on. What we return the host copies and then
//! releases with `canonical_abi_free`, so every part of a response is on the heap.

use std::alloc::{self, Layout};

pub struct Request {
    /// 0 GET, 1 POST, 2 PUT, 3 DELETE, 4 PATCH, 5 HEAD, 6 OPTIONS
    pub method: u32,
    /// Path and query.
    pub uri: String,
    pub headers: Vec<Header>,
    pub body: Vec<u8>,
}

impl Request {
    /// What follows `?` in the URL, empty if nothing does.
    pub fn query(&self) -> &str {
        self.uri.split_once('?').map_or("", |(_, query)| query)
    }

    /// The value of a header, whose name Spin has in small letters.
    pub fn header(&self, name: &str) -> Option<&str> {
        let named = |header: &&Header| header.name.text() == name;
        self.headers.iter().find(named).map(|header| header.value.text())
    }
}

#[repr(C)] // name pointer, name length, value pointer, value length
pub struct Header {
    name: List<u8>,
    value: List<u8>,
}

#[repr(C)] // 28 bytes: status at 0, headers at 4, body at 16
pub struct Response {
    status: u16,
    headers: OptionalList<Header>,
    body: OptionalList<u8>,
}

#[repr(C)]
struct List<T> {
    pointer: *mut T,
    length: usize,
}

#[repr(C)]
struct OptionalList<T> {
    is_some: u8,
    list: List<T>,
}

impl<T> List<T> {
    /// The list gives up `items`: the host releases them.
    fn lower(items: Vec<T>) -> Self {
        let items = Box::leak(items.into_boxed_slice());
        List { pointer: items.as_mut_ptr(), length: items.len() }
    }

    fn slice(&self) -> &[T] {
        unsafe { std::slice::from_raw_parts(self.pointer, self.length) }
    }

    /// The inverse of `lower`, for a list the host allocated with `canonical_abi_realloc`.
    unsafe fn lift(self) -> Vec<T> {
        Vec::from_raw_parts(self.pointer, self.length, self.length)
    }
}

impl List<u8> {
    /// The ABI promises UTF-8.
    fn text(&self) -> &str {
        unsafe { std::str::from_utf8_unchecked(self.slice()) }
    }
}

impl Header {
    pub fn new(name: &str, value: &str) -> Self {
        Header { name: List::lower(name.into()), value: List::lower(value.into()) }
    }
}

impl Response {
    pub fn new(status: u16) -> Self {
        Response {
            status,
            headers: OptionalList { is_some: 1, list: List::lower(Vec::new()) },
            body: OptionalList { is_some: 0, list: List::lower(Vec::new()) },
        }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        let mut headers = unsafe { self.headers.list.lift() };
        headers.push(Header::new(name, value));
        self.headers.list = List::lower(headers);
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = OptionalList { is_some: 1, list: List::lower(body.into()) };
        self
    }
}

/// One call is one request. `params` is always empty in Spin and `body` always present.
#[export_name = "handle-http-request"]
unsafe extern "C" fn handle_http_request(
    method: u32,
    uri: *mut u8,
    uri_length: usize,
    headers: *mut Header,
    headers_length: usize,
    _params: *mut Header,
    _params_length: usize,
    _body_is_some: u32,
    body: *mut u8,
    body_length: usize,
) -> *const Response {
    let uri = List { pointer: uri, length: uri_length }.lift();
    let response = super::handle(Request {
        method,
        uri: String::from_utf8_unchecked(uri), // the ABI promises UTF-8
        headers: List { pointer: headers, length: headers_length }.lift(),
        body: List { pointer: body, length: body_length }.lift(),
    });
    // The host never releases this block itself. It does not add up: Spin makes a new instance
    // of the module for each request.
    Box::leak(Box::new(response))
}

#[no_mangle]
unsafe extern "C" fn canonical_abi_realloc(
    old: *mut u8,
    old_size: usize,
    align: usize,
    new_size: usize,
) -> *mut u8 {
    let block = if new_size == 0 {
        return align as *mut u8; // what an empty Vec points to
    } else if old_size == 0 {
        alloc::alloc(Layout::from_size_align_unchecked(new_size, align))
    } else {
        alloc::realloc(old, Layout::from_size_align_unchecked(old_size, align), new_size)
    };
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
