use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use prost::Message as _;
use tokio::sync::mpsc::Receiver;

use super::span::{Record, Value};
use super::*;

const ALL: Sampler = Sampler {
    share: 1.0,
    heeds_parent: true,
};

fn parent(flags: &str) -> Option<Context> {
    let text = format!("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-{flags}");
    Context::read(text.as_bytes(), std::iter::empty())
}

fn taken(records: &mut Receiver<Record>) -> Vec<Record> {
    std::iter::from_fn(|| records.try_recv().ok()).collect()
}

#[tokio::test]
async fn children_find_their_parent_through_the_task_and_its_tasks() {
    let (tracer, mut records) = Tracer::into_queue(ALL, 16);
    let begun = tracer.request("GET", || parent("01"));
    let work = async {
        let outer = start("outer", Kind::Internal);
        outer.over(async { drop(start("inner", Kind::Client)) }).await;
        tokio::spawn(carry(async { drop(start("beside", Kind::Internal)) }))
            .await
            .unwrap();
        tokio::spawn(async { assert!(!start("elsewhere", Kind::Internal).is_recorded()) })
            .await
            .unwrap();
    };
    begun.span.over(work).await;
    assert!(id().is_none() && !start("after", Kind::Internal).is_recorded());
    let trace = begun.id;
    begun.span.set("a", 1_u64);
    begun.span.set("a", "b");
    begun.span.clone().end();
    begun.span.set("too", "late");
    drop(begun);
    let records = taken(&mut records);
    let of = |name: &str| records.iter().find(|record| record.name == name).unwrap();
    assert_eq!(records.len(), 4, "{records:?}");
    assert!(
        records
            .iter()
            .all(|record| Some(record.context.trace) == trace && record.end >= record.start)
    );
    let server = of("GET");
    assert_eq!(server.parent, parent("01").map(|parent| parent.span));
    assert!(server.is_joined && !of("outer").is_joined);
    assert_eq!(server.attributes, [("a", Value::from("b"))]);
    assert_eq!(of("outer").parent, Some(server.context.span));
    assert_eq!(of("beside").parent, Some(server.context.span));
    assert_eq!(of("inner").parent, Some(of("outer").context.span));
}

#[test]
fn who_is_recorded() {
    let recorded = |share, heeds_parent, flags: Option<&str>| {
        let (tracer, _records) = Tracer::into_queue(Sampler { share, heeds_parent }, 1);
        let begun = tracer.request("GET", || flags.and_then(parent));
        assert_eq!(begun.id.is_some(), begun.span.is_recorded() || flags.is_some());
        begun.span.is_recorded()
    };
    // A parent's word counts either way.
    assert!(recorded(0.0, true, Some("01")) && !recorded(1.0, true, Some("00")));
    assert!(recorded(1.0, true, None) && !recorded(0.0, true, None));
    // Unless it is not heeded.
    assert!(!recorded(0.0, false, Some("01")) && recorded(1.0, false, Some("00")));
    let off = Tracer::default().request("GET", || panic!("nobody reads headers where there are no traces"));
    assert!(!off.span.is_recorded() && off.id.is_none());
}

#[test]
fn a_full_queue_drops() {
    let (tracer, mut records) = Tracer::into_queue(ALL, 2);
    for _ in 0..5 {
        drop(tracer.request("GET", || None));
    }
    assert_eq!(taken(&mut records).len(), 2);
}

#[test]
fn texts_are_bounded() {
    let (tracer, mut records) = Tracer::into_queue(ALL, 2);
    let begun = tracer.request("GET", || None);
    begun.span.set("text", "é".repeat(5000));
    begun.span.fail("cut", &"x".repeat(5000));
    drop(begun);
    let record = taken(&mut records).remove(0);
    let Value::Text(text) = &record.attributes[0].1 else {
        panic!()
    };
    assert_eq!((text.len(), record.error.unwrap().len()), (1024, 1024));
}

/// A collector that answers by turns.
fn scripted(answers: &'static [Post]) -> (Target, Arc<Mutex<Vec<Bytes>>>) {
    let seen: Arc<Mutex<Vec<Bytes>>> = Arc::default();
    let (turn, kept) = (AtomicUsize::new(0), seen.clone());
    let post = move |body: Bytes| -> futures_util::future::BoxFuture<'static, Post> {
        kept.lock().unwrap().push(body);
        let turn = turn.fetch_add(1, Ordering::Relaxed).min(answers.len() - 1);
        Box::pin(std::future::ready(answers[turn].clone()))
    };
    let target = Target {
        name: "collector".to_owned(),
        post: Box::new(post),
        resource: vec![("service.name".to_owned(), "larder".to_owned())],
    };
    (target, seen)
}

const fn answer(status: u16) -> Post {
    Post::Answered {
        status,
        retry_after: None,
        body: Bytes::new(),
    }
}

fn spans(body: &Bytes) -> usize {
    let request = otlp::ExportRequest::decode(body.clone()).unwrap();
    request.resource_spans[0].scope_spans[0].spans.len()
}

/// What may pass is tried again, what may not is not; at the end nothing is left behind.
#[tokio::test(start_paused = true)]
async fn batches_and_their_repeats() {
    static ANSWERS: [Post; 4] = [answer(503), answer(200), answer(400), answer(200)];
    let (target, seen) = scripted(&ANSWERS);
    let (tracer, exporter) = Tracer::new(ALL, false, target);
    for _ in 0..3 {
        drop(tracer.request("GET", || None));
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(seen.lock().unwrap().iter().map(spans).collect::<Vec<_>>(), [3, 3]);
    drop(tracer.request("GET", || None));
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(seen.lock().unwrap().len(), 3, "400 is no reason to send it again");
    for _ in 0..2 * 512 {
        drop(tracer.request("GET", || None));
    }
    exporter.close().await;
    let sent: Vec<usize> = seen.lock().unwrap().iter().skip(3).map(spans).collect();
    assert_eq!(sent, [512, 512]);
}

/// A collector that is gone costs its spans, and the end of the process a moment.
#[tokio::test(start_paused = true)]
async fn a_dead_collector_holds_up_nobody() {
    let post = |_: Bytes| -> futures_util::future::BoxFuture<'static, Post> { Box::pin(std::future::pending()) };
    let target = Target {
        name: "nobody".to_owned(),
        post: Box::new(post),
        resource: Vec::new(),
    };
    let (tracer, exporter) = Tracer::new(ALL, false, target);
    for _ in 0..10_000 {
        drop(tracer.request("GET", || None));
    }
    let asked = tokio::time::Instant::now();
    exporter.close().await;
    assert!(asked.elapsed() <= Duration::from_secs(6), "{:?}", asked.elapsed());
}

#[test]
fn upstreams_are_told_in_the_words_of_the_trace() {
    let (tracer, _records) = Tracer::into_queue(ALL, 4);
    let begun = tracer.request("GET", || {
        let state = std::iter::once(&b"a=b"[..]);
        Context::read(b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", state)
    });
    let (parent, state) = begun.span.headers().unwrap();
    assert!(parent.starts_with("00-4bf92f3577b34da6a3ce929d0e0e4736-") && parent.ends_with("-01"));
    assert!(
        !parent.contains("00f067aa0ba902b7"),
        "the parent is this span, not the client's"
    );
    assert_eq!(state.as_deref(), Some("a=b"));
    assert_eq!(Span::default().headers(), None);
}
