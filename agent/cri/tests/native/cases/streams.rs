//! Exec, attach and port-forward over WebSocket and SPDY.

use crate::node::Node;
use crate::{spdy_client, stream_client};
use cri_api::v1::*;
use futures::StreamExt;
use tokio_tungstenite::tungstenite::Message;

pub async fn exec_streams_over_websocket(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let id = node.run(&sandbox, node.script("c", "sleep 1000")).await;
    let request = |script: &str, tty: bool| ExecRequest {
        container_id: id.clone(),
        cmd: vec!["sh".into(), "-c".into(), script.into()],
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
        ..Default::default()
    };
    let url = node
        .runtime()
        .exec(request("cat; echo err >&2; exit 6", false))
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = stream_client::open(&url, "v5.channel.k8s.io").await;
    let long = "line\n".repeat(50_000);
    client.stdin(long.as_bytes()).await;
    client.close_stdin().await;
    let ended = client.finish().await;
    assert_eq!(ended.stdout.len(), long.len());
    assert_eq!(ended.stderr, "err\n");
    assert_eq!(ended.status["details"]["causes"][0]["message"], "6");
    assert!(
        stream_client::try_open(&url, "v5.channel.k8s.io").await.is_err(),
        "an address works once"
    );
    let url = node
        .runtime()
        .exec(request("echo out; exit 6", false))
        .await
        .unwrap()
        .into_inner()
        .url;
    let ended = stream_client::open(&url, "channel.k8s.io").await.finish().await;
    assert_eq!(ended.stdout, "out\n");
    assert_eq!(
        ended.status,
        "command terminated with non-zero exit code: exit status 6"
    );
    let url = node
        .runtime()
        .exec(request("stty size; tty; read line; echo got $line", true))
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = stream_client::open(&url, "v4.channel.k8s.io").await;
    client.resize(111, 33).await;
    client.until("/dev/pts/").await;
    client.stdin(b"typed\n").await;
    let ended = client.finish().await;
    assert!(ended.stdout.contains("got typed"), "{}", ended.stdout);
    assert_eq!(ended.status["status"], "Success");
}

pub async fn exec_streams_over_spdy(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let id = node.run(&sandbox, node.script("c", "sleep 1000")).await;
    let request = ExecRequest {
        container_id: id,
        cmd: vec!["sh".into(), "-c".into(), "cat; exit 6".into()],
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let url = node.runtime().exec(request).await.unwrap().into_inner().url;
    let mut client = spdy_client::open(&url, "v4.channel.k8s.io").await;
    for (stream, kind) in [(1, "error"), (3, "stdin"), (5, "stdout"), (7, "stderr")] {
        client.open_stream(stream, &[("streamtype", kind)]).await;
    }
    client.send(3, b"through spdy", true).await;
    assert_eq!(client.read_to_end(5).await, b"through spdy");
    let status: serde_json::Value = serde_json::from_slice(&client.read_to_end(1).await).unwrap();
    assert_eq!(status["details"]["causes"][0]["message"], "6");
}

pub async fn attach_reaches_the_terminal_and_the_input(node: &mut Node) {
    let sandbox = node.sandbox().await;
    let mut config = node.script("pipes", "cat; echo end");
    (config.stdin, config.stdin_once) = (true, true);
    let id = node.run(&sandbox, config).await;
    let attach = |id: &str, tty: bool| AttachRequest {
        container_id: id.into(),
        stdin: true,
        stdout: true,
        stderr: !tty,
        tty,
        ..Default::default()
    };
    let url = node
        .runtime()
        .attach(attach(&id, false))
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = stream_client::open(&url, "v5.channel.k8s.io").await;
    client.stdin(b"typed\n").await;
    client.until("typed").await;
    client.close_stdin().await;
    assert!(client.finish().await.stdout.ends_with("end\n"));
    assert_eq!(node.wait(&id).await.exit_code, 0);
    assert_eq!(node.lines("pipes"), ["typed", "end"]);
    let mut config = node.script("terminal", "tty; read line; stty size; echo got $line");
    (config.stdin, config.tty) = (true, true);
    let id = node.run(&sandbox, config).await;
    let url = node
        .runtime()
        .attach(attach(&id, true))
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut client = stream_client::open(&url, "v5.channel.k8s.io").await;
    client.resize(99, 44).await;
    client.stdin(b"x\n").await;
    let ended = client.finish().await;
    assert!(
        ended.stdout.contains("44 99") && ended.stdout.contains("got x"),
        "{}",
        ended.stdout
    );
    assert_eq!(node.wait(&id).await.exit_code, 0);
}

pub async fn ports_are_forwarded(node: &mut Node) {
    let sandbox = node.sandbox().await;
    node.run(
        &sandbox,
        node.script(
            "server",
            "while true; do echo hello from the pod | nc -l -p 8080; done",
        ),
    )
    .await;
    let request = PortForwardRequest {
        pod_sandbox_id: sandbox,
        port: vec![8080],
    };
    for tunnel in [false, true] {
        let text = node
            .until("the pod answers", async || {
                let url = node
                    .runtime()
                    .port_forward(request.clone())
                    .await
                    .unwrap()
                    .into_inner()
                    .url;
                let mut client = if tunnel {
                    spdy_client::open_tunnel(&url, "SPDY/3.1+portforward.k8s.io").await
                } else {
                    spdy_client::open(&url, "portforward.k8s.io").await
                };
                client
                    .open_stream(
                        1,
                        &[("streamtype", "error"), ("port", "8080"), ("requestid", "0")],
                    )
                    .await;
                client
                    .open_stream(3, &[("streamtype", "data"), ("port", "8080"), ("requestid", "0")])
                    .await;
                let text = client.read_to_end(3).await;
                // Refused until the server listens.
                (!text.is_empty()).then_some(text)
            })
            .await;
        assert_eq!(text, b"hello from the pod\n");
    }
    // Two channels a port over a plain WebSocket.
    let answer = node
        .until("the pod answers", async || {
            let url = node
                .runtime()
                .port_forward(request.clone())
                .await
                .unwrap()
                .into_inner()
                .url;
            let mut socket = stream_client::connect(&url, "v4.channel.k8s.io").await.unwrap();
            let (mut data, mut errors) = (Vec::new(), Vec::new());
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Binary(bytes) if bytes[0] == 0 => data.extend_from_slice(&bytes[1..]),
                    Message::Binary(bytes) => errors.extend_from_slice(&bytes[1..]),
                    _ => break,
                }
            }
            assert_eq!(
                (&data[..2], &errors[..2]),
                (&8080u16.to_le_bytes()[..], &8080u16.to_le_bytes()[..])
            );
            (data.len() > 2).then_some(data)
        })
        .await;
    assert_eq!(&answer[2..], b"hello from the pod\n");
    // A connection carries one forwarded connection after the other, failures between them.
    let url = node
        .runtime()
        .port_forward(request)
        .await
        .unwrap()
        .into_inner()
        .url;
    let mut lasting = spdy_client::open(&url, "portforward.k8s.io").await;
    let mut stream = 1;
    for port in ["9", "8080", "9", "8080"] {
        let mut got;
        loop {
            let id = (stream / 4).to_string();
            let headers = |kind| {
                [("streamtype", kind), ("port", port), ("requestid", &id)]
                    .map(|(n, v): (&str, &str)| (n.to_owned(), v.to_owned()))
            };
            for (offset, kind) in [(0, "error"), (2, "data")] {
                let headers = headers(kind);
                let borrowed: Vec<(&str, &str)> =
                    headers.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
                lasting.open_stream(stream + offset, &borrowed).await;
            }
            got = (
                lasting.read_to_end(stream + 2).await,
                lasting.read_to_end(stream).await,
            );
            stream += 4;
            // Refused while the server turns to its next client.
            if port == "9" || !got.0.is_empty() {
                break;
            }
        }
        if port == "9" {
            let error = String::from_utf8(got.1).unwrap();
            assert!(
                error.contains("error forwarding port 9") && error.contains("refused"),
                "{error}"
            );
        } else {
            assert_eq!(got.0, b"hello from the pod\n");
        }
    }
}
