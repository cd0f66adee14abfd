//! What a worker of Wasm Workers Server in Rust needs: no crates. A worker is one file, which has this
//! one as a module:
//!
//!     mod worker;
//!     use worker::{Request, Response};
//!
//!     fn main() {
//!         worker::answer(|request: &mut Request| Response::new(200).body(&request.url))
//!     }
//!
//!     rustc --target wasm32-wasi -C opt-level=s -C strip=symbols app.rs
//!
//! The host writes the request to standard input as JSON, and reads the response from standard
//! output.

#![allow(dead_code)] // no worker needs all of it

use std::collections::BTreeMap;
use std::io::Read;
use std::{fmt::Write, iter::Peekable, str::Chars};

pub type Texts = BTreeMap<String, String>;

pub struct Request {
    pub method: String,
    pub url: String,
    pub headers: Texts,
    /// Of the route: `name` of `[name].wasm`.
    pub params: Texts,
    /// In base64 if it is no UTF-8.
    pub body: String,
    /// The worker's store. What is changed here the host keeps.
    pub kv: Texts,
}

pub struct Response {
    status: u16,
    headers: Texts,
    body: String,
}

impl Response {
    pub fn new(status: u16) -> Self {
        Response { status, headers: Texts::new(), body: String::new() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }

    pub fn body(mut self, body: impl Into<String>) -> Self {
        self.body = body.into();
        self
    }
}

/// Answers the request that is on standard input.
pub fn answer(handle: impl FnOnce(&mut Request) -> Response) {
    let mut json = String::new();
    std::io::stdin().read_to_string(&mut json).expect("a request on standard input");
    let mut fields = match value(&mut json.chars().peekable()) {
        Value::Object(fields) => fields,
        _ => panic!("the request is no object"),
    };
    let mut request = Request {
        method: text(fields.remove("method")),
        url: text(fields.remove("url")),
        headers: texts(fields.remove("headers")),
        params: texts(fields.remove("params")),
        body: text(fields.remove("body")),
        kv: texts(fields.remove("kv")),
    };
    let response = handle(&mut request);
    print!(
        r#"{{"data":{},"headers":{},"status":{},"kv":{}}}"#,
        quoted(&response.body),
        object(&response.headers),
        response.status,
        object(&request.kv)
    );
}

fn quoted(text: &str) -> String {
    let mut json = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => json.extend(['\\', c]),
            c if c < ' ' => write!(json, "\\u{:04x}", c as u32).unwrap(),
            c => json.push(c),
        }
    }
    json + "\""
}

fn object(texts: &Texts) -> String {
    let pair = |(key, value): (&String, &String)| quoted(key) + ":" + &quoted(value);
    format!("{{{}}}", texts.iter().map(pair).collect::<Vec<_>>().join(","))
}

enum Value {
    Text(String),
    Object(BTreeMap<String, Value>),
    /// A list, a number, true, false, null: no field of a request that is read here.
    Other,
}

fn text(value: Option<Value>) -> String {
    match value {
        Some(Value::Text(text)) => text,
        _ => String::new(),
    }
}

fn texts(value: Option<Value>) -> Texts {
    match value {
        Some(Value::Object(fields)) => {
            fields.into_iter().map(|(key, value)| (key, text(Some(value)))).collect()
        }
        _ => Texts::new(),
    }
}

/// Reads the value that is next. The host writes valid JSON, without blanks.
fn value(json: &mut Peekable<Chars>) -> Value {
    match json.peek() {
        Some('"') => Value::Text(string(json)),
        Some('{') => {
            let mut fields = BTreeMap::new();
            json.next();
            while json.peek() == Some(&'"') {
                let key = string(json);
                json.next(); // :
                fields.insert(key, value(json));
                json.next_if_eq(&',');
            }
            json.next();
            Value::Object(fields)
        }
        Some('[') => {
            json.next();
            while !matches!(json.peek(), Some(']') | None) {
                value(json);
                json.next_if_eq(&',');
            }
            json.next();
            Value::Other
        }
        _ => {
            while json.next_if(|c| !",]}".contains(*c)).is_some() {}
            Value::Other
        }
    }
}

fn string(json: &mut Peekable<Chars>) -> String {
    let mut text = String::new();
    json.next(); // "
    loop {
        match json.next() {
            Some('\\') => text.push(escaped(json)),
            Some('"') | None => return text,
            Some(c) => text.push(c),
        }
    }
}

/// Reads what follows a backslash. Of characters the host escapes only those below 128 so.
fn escaped(json: &mut Peekable<Chars>) -> char {
    match json.next() {
        Some('n') => '\n',
        Some('t') => '\t',
        Some('r') => '\r',
        Some('b') => '\u{8}',
        Some('f') => '\u{c}',
        Some('u') => {
            let code: String = json.by_ref().take(4).collect();
            u32::from_str_radix(&code, 16).ok().and_then(char::from_u32).unwrap_or('\u{fffd}')
        }
        Some(c) => c,
        None => '\u{fffd}',
    }
}
