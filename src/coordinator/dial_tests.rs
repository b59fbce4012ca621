use super::*;
use std::net::Ipv4Addr;
use tokio::net::TcpListener;

fn address(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}

/// A port of this machine that nothing listens on: taken and given back.
async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind(address(0)).await.unwrap();
    listener.local_addr().unwrap()
}

#[tokio::test]
async fn the_next_address_of_a_name_is_tried_when_one_refuses() {
    let closed = closed_port().await;
    let listener = TcpListener::bind(address(0)).await.unwrap();
    let open = listener.local_addr().unwrap();
    let (_, connected) = connect(&[closed, open]).await.unwrap();
    assert_eq!(connected, open);
    let fault = connect(&[closed, closed]).await.unwrap_err();
    assert_eq!(
        fault,
        Fault::Refused {
            addresses: format!("{closed}, {closed}")
        }
    );
}

#[tokio::test]
async fn an_address_that_swallows_packets_does_not_eat_the_time_of_the_next() {
    // A listener whose backlog is full drops what comes, like a firewall.
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(address(0)).unwrap();
    let deaf = socket.listen(1).unwrap();
    let swallows = deaf.local_addr().unwrap();
    let mut fill = Vec::new();
    for _ in 0..3 {
        let connecting = tokio::spawn(TcpStream::connect(swallows));
        fill.push(connecting);
    }
    let listener = TcpListener::bind(address(0)).await.unwrap();
    let open = listener.local_addr().unwrap();
    // Whether the kernel let one more in or not, one of the two answers well before a SYN is repeated.
    let (_, connected) = connect(&[swallows, open]).await.unwrap();
    assert!(connected == open || connected == swallows);
    for connecting in fill {
        connecting.abort();
    }
}

/// An open channel, and the guardian's end of its connection, which the test is.
async fn sealed() -> (Line, TcpStream) {
    let listener = TcpListener::bind(address(0)).await.unwrap();
    let connecting = TcpStream::connect(listener.local_addr().unwrap());
    let (ours, accepted) = tokio::join!(connecting, listener.accept());
    let key = PresharedKey::parse(&"k".repeat(40), "key".as_ref()).unwrap();
    let (opening, hello) = Opening::begin(&key).unwrap();
    let keys = key.into();
    let (_, welcome, _) = crate::protocol::channel::answer(&keys, &hello).unwrap();
    let line = Line {
        socket: WebSocketStream::from_raw_socket(ours.unwrap(), Role::Client, None).await,
        layer: Layer::Sealed(Box::new(opening.finish(&welcome).unwrap())),
    };
    (line, accepted.unwrap().0)
}

#[tokio::test]
async fn a_guardian_that_answers_no_ping_is_given_up_while_its_answer_is_awaited() {
    let (mut line, mut theirs) = sealed().await;
    tokio::time::pause();
    let began = tokio::time::Instant::now();
    let fault = line
        .hear(Action::Drain, Phase::Answer(Action::Drain))
        .await
        .unwrap_err();
    assert!(
        matches!(fault, Fault::Lost { .. }) && fault.to_string().contains("ping"),
        "{fault}"
    );
    assert!(began.elapsed() >= PINGS.give_up);
    drop(line);
    let mut said = Vec::new();
    tokio::io::AsyncReadExt::read_to_end(&mut theirs, &mut said)
        .await
        .unwrap();
    // A ping of a client: two bytes, and a mask of four.
    let pings = (PINGS.give_up.as_secs() / PINGS.after.as_secs() - 1) as usize;
    assert_eq!((said.len(), said[0]), (6 * pings, 0x89), "{said:?}");
}

#[tokio::test]
async fn a_guardian_that_works_for_long_and_answers_pings_is_waited_for() {
    let (mut line, theirs) = sealed().await;
    let mut theirs = WebSocketStream::from_raw_socket(theirs, Role::Server, None).await;
    tokio::time::pause();
    let waits = timeout(
        PINGS.give_up * 10,
        line.hear(Action::Drain, Phase::Answer(Action::Drain)),
    );
    tokio::select! {
        waited = waits => assert!(waited.is_err(), "{waited:?}"),
        _ = async { while theirs.next().await.is_some() {} } => panic!("it hung up"),
    }
}

#[test]
fn a_shortage_of_descriptors_is_ours_and_not_the_hosts() {
    let error = io::Error::from_raw_os_error(nix::errno::Errno::EMFILE as i32);
    let fault = connect_fault(&[(address(1), error)]);
    assert!(matches!(fault, Fault::NoDescriptor { .. }), "{fault:?}");
    assert!(fault.remedy().contains("LimitNOFILE"));
}
