//! What is no etcd, and sits where one should be: every request ends in its time, with a word on where, and nothing is taken for done.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use io_guardian::store::{Etcd, EtcdSettings, LeaseId, Revision, Store, StoreError, Transaction};
use tokio::time::timeout;

use crate::cluster::{Cluster, store};

const SHORT: Duration = Duration::from_secs(1);
/// A busy machine may be late by this much.
const SLACK: Duration = Duration::from_secs(10);

/// Somebody who does this with every connection.
fn stranger(behaves: impl Fn(TcpStream) + Send + Sync + Clone + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let behaves = behaves.clone();
            std::thread::spawn(move || behaves(stream));
        }
    });
    address
}

/// Reads what comes until it ends.
fn listen(mut stream: &TcpStream) {
    let mut buffer = [0; 4096];
    while stream.read(&mut buffer).is_ok_and(|count| count > 0) {}
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// An HTTP/2 server that answers the first requests with these frames, whatever they are.
fn answers(frames: impl Fn(u32) -> Vec<u8> + Send + Sync + Clone + 'static) -> String {
    stranger(move |mut stream| {
        let mut greeting = frame(SETTINGS, 0, 0, &[]);
        greeting.extend(frame(SETTINGS, 1, 0, &[]));
        let mut buffer = [0; 4096];
        if stream.read(&mut buffer).is_err() || stream.write_all(&greeting).is_err() {
            return;
        }
        // Ours are 1, 3, 5 ...; those that do not exist yet are an error of theirs.
        let _ = stream.write_all(&frames(1));
        listen(&stream);
    })
}

/// Header fields without compression.
fn fields(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).unwrap());
            block.extend(text.as_bytes());
        }
    }
    block
}

async fn is_no_use(store: &Etcd, what: &str, endpoint: &str) {
    let within = async |error: std::pin::Pin<Box<dyn Future<Output = Option<StoreError>> + '_>>| {
        timeout(SHORT + SLACK, error)
            .await
            .expect("it does not end with its time")
            .expect("a stranger has done it")
    };
    let errors = [
        within(Box::pin(async { store.list("/", SHORT).await.err() })).await,
        within(Box::pin(async {
            store
                .commit(Transaction::default().put("/a", "", None), SHORT)
                .await
                .err()
        }))
        .await,
        within(Box::pin(async { store.grant(SHORT, SHORT).await.err() })).await,
        within(Box::pin(async {
            store.keep_alive(LeaseId(1), SHORT).await.err()
        }))
        .await,
        within(Box::pin(async { store.revoke(LeaseId(1), SHORT).await.err() })).await,
        within(Box::pin(async {
            store.watch("/", Revision(1), SHORT).await.err()
        }))
        .await,
    ];
    for error in &errors {
        let said = error.to_string();
        assert!(
            said.contains(endpoint) || *error == StoreError::LeaseGone,
            "{said}"
        );
        assert!(said.len() < 500 && !said.contains(['\n', '\x1b']), "{said}");
    }
    println!("{what}:\n    {}\n    {}", errors[0], errors[1]);
}

#[tokio::test]
async fn strangers_are_no_use_and_do_no_harm() {
    let http = [(":status", "404"), ("content-type", "text/html")];
    let rubbish = [(":status", "200"), ("content-type", "application/grpc")];
    let strangers = [
        ("says nothing", stranger(|stream| listen(&stream))),
        ("hangs up", stranger(drop)),
        (
            "speaks HTTP/1.1",
            stranger(|mut stream| {
                let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n");
                listen(&stream);
            }),
        ),
        (
            "never stops",
            stranger(|mut stream| while stream.write_all(&[b'\x1b'; 65536]).is_ok() {}),
        ),
        (
            "settings without end",
            stranger(|mut stream| while stream.write_all(&frame(SETTINGS, 0, 0, &[]).repeat(100)).is_ok() {}),
        ),
        ("goes away", answers(|_| frame(GOAWAY, 0, 0, &[0; 8]))),
        (
            "another service",
            answers(move |id| frame(HEADERS, END_HEADERS | END_STREAM, id, &fields(&http))),
        ),
        (
            "a message of any length",
            answers(move |id| {
                let mut all = frame(HEADERS, END_HEADERS, id, &fields(&rubbish));
                all.extend(frame(DATA, 0, id, &[0, 0xff, 0xff, 0xff, 0xff, 1, 2, 3]));
                all
            }),
        ),
        (
            "a message of nothing that it should be",
            answers(move |id| {
                let mut all = frame(HEADERS, END_HEADERS, id, &fields(&rubbish));
                all.extend(frame(DATA, 0, id, &[0, 0, 0, 0, 3, 0xff, 0xff, 0xff]));
                all
            }),
        ),
        (
            "a message with nothing in it",
            answers(move |id| {
                let mut all = frame(HEADERS, END_HEADERS, id, &fields(&rubbish));
                all.extend(frame(DATA, 0, id, &[0, 0, 0, 0, 0]));
                all.extend(frame(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    id,
                    &fields(&[("grpc-status", "0")]),
                ));
                all
            }),
        ),
        (
            "an error with colours",
            answers(move |id| {
                let error = [
                    rubbish[0],
                    rubbish[1],
                    ("grpc-status", "13"),
                    ("grpc-message", "%1b[31m%0a"),
                ];
                frame(HEADERS, END_HEADERS | END_STREAM, id, &fields(&error))
            }),
        ),
    ];
    let all = strangers.iter().map(|(what, endpoint)| async move {
        let endpoints = vec![endpoint.clone()];
        is_no_use(
            &store(&EtcdSettings {
                endpoints,
                ..EtcdSettings::default()
            }),
            what,
            endpoint,
        )
        .await;
    });
    futures_util::future::join_all(all).await;
    // A real one behind all of them is found.
    let Some(cluster) = Cluster::start("strangers_are_no_use", 1) else {
        return;
    };
    let mut endpoints: Vec<_> = strangers.into_iter().map(|(_, endpoint)| endpoint).collect();
    endpoints.extend(cluster.endpoints());
    let store = store(&EtcdSettings {
        endpoints,
        ..EtcdSettings::default()
    });
    timeout(SHORT * 4 + SLACK, store.list("/", SHORT * 4))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(store.endpoint(), cluster.endpoints()[0]);
}
