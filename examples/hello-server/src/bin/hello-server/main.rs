//! A web server on port 8080 that answers every request with the name of its pod.
//!
//! The first process of a container has no default action for signals, so SIGTERM is handled: it ends the program at once.

#![deny(unsafe_code)]

mod sys;

use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv6Addr, TcpListener, TcpStream};
use std::process::ExitCode;
use std::time::Duration;

const HELP: &str = "\
Answers every HTTP request with the name of its pod.

usage: hello-server [--port PORT]    (default 8080)
       hello-server --help
";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let port = match *arguments {
        [] => 8080,
        ["--help"] => {
            print!("{HELP}");
            return ExitCode::SUCCESS;
        }
        ["--port", port] => match port.parse() {
            Ok(port) => port,
            Err(err) => {
                eprintln!("hello-server: {port:?}: {err}");
                return ExitCode::from(2);
            }
        },
        _ => {
            eprint!("{HELP}");
            return ExitCode::from(2);
        }
    };
    sys::end_on_sigterm();
    match serve(port) {
        Ok(never) => match never {},
        Err(err) => {
            eprintln!("hello-server: port {port}: {err}");
            ExitCode::FAILURE
        }
    }
}

fn serve(port: u16) -> std::io::Result<std::convert::Infallible> {
    // Both address families, where there is IPv6 at all.
    let listener = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port))
        .or_else(|_| TcpListener::bind(("0.0.0.0", port)))?;
    let name = std::env::var("HOSTNAME")
        .ok()
        .filter(|name| !name.is_empty())
        .map_or_else(host_name, Ok)?;
    println!("hello-server: {name} listens on port {port}");
    loop {
        let (connection, peer) = listener.accept()?;
        let name = name.clone();
        std::thread::spawn(move || {
            // A client that goes away in the middle is its own affair.
            if let Ok(request) = answer(&connection, &name) {
                println!("{peer} {request}");
            }
        });
    }
}

/// Answers the requests of one connection until it is closed or idle, and returns the last request's first line.
fn answer(mut connection: &TcpStream, name: &str) -> std::io::Result<String> {
    connection.set_read_timeout(Some(Duration::from_secs(30)))?;
    let mut reader = BufReader::new(connection);
    let mut request = String::new();
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first)? == 0 {
            return Ok(request);
        }
        let mut close = false;
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 || line == "\r\n" || line == "\n" {
                break;
            }
            close |= line.trim().eq_ignore_ascii_case("connection: close");
        }
        request = first.trim().to_owned();
        let body = if first.starts_with("HEAD ") { "" } else { name };
        let keep = if close { "close" } else { "keep-alive" };
        let end = if body.is_empty() { "" } else { "\n" };
        let length = name.len() + 1;
        let answer = format!(
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\
             Connection: {keep}\r\n\r\n{body}{end}"
        );
        connection.write_all(answer.as_bytes())?;
        if close {
            return Ok(request);
        }
    }
}

fn host_name() -> std::io::Result<String> {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    Ok(name.trim().to_owned())
}
