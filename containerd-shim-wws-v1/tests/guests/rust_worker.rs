//! A worker without a kit: answers with the length of its request, and with what the URL has after
//! `?`. `panic` there panics.

use std::io::{self, Read};

fn main() {
    let mut request = String::new();
    io::stdin().read_to_string(&mut request).expect("standard input");
    let url = request.split('"').nth(3).unwrap_or("");
    let query = url.split_once('?').map_or("", |(_, query)| query);
    if query == "panic" {
        panic!("as told");
    }
    print!(
        r#"{{"data":"rust {} {}","headers":{{"content-type":"text/plain"}},"status":200,"kv":{{}}}}"#,
        query,
        request.len()
    );
}
