//! The ABI of SpiderLightning 0.4 and 0.5 for HTTP apps in Rust: no SDK, no crates. An app is one
//! file, which has this one as a module. Its `init` is called once and starts a server, its handlers
//! for each request:
//!
//!     pub mod slight;
//!     use slight::{Request, Response, Router};
//!
//!     fn init() -> Result<(), String> {
//!         Router::new()?.get("/greet/:name", "handle_greet")?.serve("0.0.0.0:3000")
//!     }
//!
//!     slight::handler!("handle-greet", |request: Request| {
//!         Response::new(200).body(request.param("name").unwrap_or("nobody"))
//!     });
//!
//!     rustc --target wasm32-wasi --crate-type cdylib -C opt-level=s -C strip=symbols app.rs
//!
//! What the host passes in it allocates with `canonical_abi_realloc`, and it is ours from then on. A
//! new instance of the module serves each request, so what is returned is left where it is.

use std::alloc::{self, Layout};

pub struct Request {
    /// 0 GET, 1 POST, 2 PUT, 3 DELETE, 4 PATCH, 5 HEAD, 6 OPTIONS
    pub method: u32,
    /// Path and query.
    pub uri: String,
    pub headers: Vec<(String, String)>,
    /// Of the route.
    pub params: Vec<(String, String)>,
    pub body: Vec<u8>,
}

pub struct Response {
    status: u16,
    headers: Vec<Pair>,
    body: &'static [u8],
}

pub struct Router(u32);

/// A store of the slightfile's `keyvalue`.
pub struct Store(u32);

impl Request {
    pub fn param(&self, name: &str) -> Option<&str> {
        self.params.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        let named = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.headers.iter().find(named).map(|(_, value)| value.as_str())
    }
}

impl Response {
    pub fn new(status: u16) -> Self {
        Response { status, headers: Vec::new(), body: b"" }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        let [name, value] = [name, value].map(|text| Box::leak(text.to_string().into_boxed_str()));
        self.headers.push([
            name.as_ptr() as u32,
            name.len() as u32,
            value.as_ptr() as u32,
            value.len() as u32,
        ]);
        self
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Box::leak(body.into().into_boxed_slice());
        self
    }
}

impl Router {
    pub fn new() -> Result<Self, String> {
        call(|result| unsafe { router_new(result) }).map(|[handle, _]| Router(handle))
    }

    /// Requests for `path` go to the export that is called as `handler`, with `-` in place of `_`.
    pub fn get(self, path: &str, handler: &str) -> Result<Self, String> {
        self.add(router_get, path, handler)
    }

    pub fn put(self, path: &str, handler: &str) -> Result<Self, String> {
        self.add(router_put, path, handler)
    }

    pub fn post(self, path: &str, handler: &str) -> Result<Self, String> {
        self.add(router_post, path, handler)
    }

    pub fn delete(self, path: &str, handler: &str) -> Result<Self, String> {
        self.add(router_delete, path, handler)
    }

    fn add(self, add: AddRoute, path: &str, handler: &str) -> Result<Self, String> {
        let (p, h) = (path.as_bytes(), handler.as_bytes());
        call(|result| unsafe { add(self.0, p.as_ptr(), p.len(), h.as_ptr(), h.len(), result) })
            .map(|[handle, _]| Router(handle))
    }

    pub fn serve(self, address: &str) -> Result<(), String> {
        call(|result| unsafe { serve(address.as_ptr(), address.len(), self.0, result) }).map(|_| ())
    }
}

impl Store {
    /// `name` is that of a capability in the slightfile.
    pub fn open(name: &str) -> Result<Self, String> {
        call(|result| unsafe { open(name.as_ptr(), name.len(), result) })
            .map(|[handle, _]| Store(handle))
    }

    pub fn get(&self, key: &str) -> Result<Vec<u8>, String> {
        call(|result| unsafe { get(self.0, key.as_ptr(), key.len(), result) })
            .map(|[pointer, length]| unsafe { bytes(pointer as *mut u8, length as usize) })
    }

    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), String> {
        let (p, n) = (key.as_ptr(), key.len());
        call(|result| unsafe { set(self.0, p, n, value.as_ptr(), value.len(), result) }).map(|_| ())
    }
}

/// Exports a closure as the handler of that name: `request -> response`.
#[macro_export]
macro_rules! handler {
    ($name:literal, $handle:expr) => {
        const _: () = {
            #[export_name = $name]
            unsafe extern "C" fn handler(
                method: u32,
                uri: *mut u8,
                uri_length: usize,
                headers: *mut $crate::slight::Pair,
                headers_length: usize,
                params: *mut $crate::slight::Pair,
                params_length: usize,
                body_is_some: u32,
                body: *mut u8,
                body_length: usize,
            ) -> *const [u32; 8] {
                $crate::slight::answer(
                    $handle,
                    method,
                    (uri, uri_length),
                    (headers, headers_length),
                    (params, params_length),
                    if body_is_some != 0 { Some((body, body_length)) } else { None },
                )
            }
        };
    };
}
pub use handler;

/// Pointer and length of a name, and of a value.
pub type Pair = [u32; 4];

/// What the host's functions return: whether it is an error; then a handle, or pointer and length, or
/// an error's number with pointer and length of its text.
type Outcome = [u32; 4];
type AddRoute = unsafe extern "C" fn(u32, *const u8, usize, *const u8, usize, *mut Outcome);

#[link(wasm_import_module = "http-server")]
extern "C" {
    #[link_name = "router::new"]
    fn router_new(result: *mut Outcome);
    #[link_name = "router::get"]
    fn router_get(_: u32, _: *const u8, _: usize, _: *const u8, _: usize, _: *mut Outcome);
    #[link_name = "router::put"]
    fn router_put(_: u32, _: *const u8, _: usize, _: *const u8, _: usize, _: *mut Outcome);
    #[link_name = "router::post"]
    fn router_post(_: u32, _: *const u8, _: usize, _: *const u8, _: usize, _: *mut Outcome);
    #[link_name = "router::delete"]
    fn router_delete(_: u32, _: *const u8, _: usize, _: *const u8, _: usize, _: *mut Outcome);
    #[link_name = "server::serve"]
    fn serve(address: *const u8, length: usize, router: u32, result: *mut Outcome);
}

#[link(wasm_import_module = "keyvalue")]
extern "C" {
    #[link_name = "keyvalue::open"]
    fn open(name: *const u8, length: usize, result: *mut Outcome);
    #[link_name = "keyvalue::get"]
    fn get(store: u32, key: *const u8, length: usize, result: *mut Outcome);
    #[link_name = "keyvalue::set"]
    fn set(_: u32, _: *const u8, _: usize, _: *const u8, _: usize, _: *mut Outcome);
}

fn call(function: impl FnOnce(*mut Outcome)) -> Result<[u32; 2], String> {
    let mut outcome = [0; 4];
    function(&mut outcome);
    match outcome {
        [0, first, second, _] => Ok([first, second]),
        [_, _, pointer, length] => Err(unsafe { text(pointer as *mut u8, length as usize) }),
    }
}

unsafe fn bytes(pointer: *mut u8, length: usize) -> Vec<u8> {
    Vec::from_raw_parts(pointer, length, length)
}

unsafe fn text(pointer: *mut u8, length: usize) -> String {
    String::from_utf8_unchecked(bytes(pointer, length)) // the ABI promises UTF-8
}

unsafe fn pairs((pairs, length): (*mut Pair, usize)) -> Vec<(String, String)> {
    let pairs = Vec::from_raw_parts(pairs, length, length);
    let lift = |[name, name_length, value, value_length]: Pair| {
        (
            text(name as *mut u8, name_length as usize),
            text(value as *mut u8, value_length as usize),
        )
    };
    pairs.into_iter().map(lift).collect()
}

/// For `handler!`. Returns the ABI's result, of 32 bytes: 0, the status, then headers and body: of
/// each whether it is there, its pointer and its length.
pub unsafe fn answer(
    handle: impl FnOnce(Request) -> Response,
    method: u32,
    (uri, uri_length): (*mut u8, usize),
    headers: (*mut Pair, usize),
    params: (*mut Pair, usize),
    body: Option<(*mut u8, usize)>,
) -> *const [u32; 8] {
    let response = handle(Request {
        method,
        uri: text(uri, uri_length),
        headers: pairs(headers),
        params: pairs(params),
        body: body.map_or(Vec::new(), |(pointer, length)| bytes(pointer, length)),
    });
    let headers = response.headers.leak();
    Box::leak(Box::new([
        0,
        response.status.into(),
        1,
        headers.as_ptr() as u32,
        headers.len() as u32,
        1,
        response.body.as_ptr() as u32,
        response.body.len() as u32,
    ]))
}

#[export_name = "on-server-init"]
extern "C" fn on_server_init() -> *const Outcome {
    let outcome = match super::init() {
        Ok(()) => [0; 4],
        Err(reason) => {
            let reason = Box::leak(reason.into_boxed_str());
            [1, reason.as_ptr() as u32, reason.len() as u32, 0]
        }
    };
    Box::leak(Box::new(outcome))
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
extern "C" fn canonical_abi_free(_pointer: *mut u8, _size: usize, _align: usize) {}
