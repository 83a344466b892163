//! HTTP for Prometheus, on loopback unless the configuration says otherwise. Read-only.

use std::{io, net::SocketAddr, thread::JoinHandle};

use axum::{Router, http::header, routing::get};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};

use crate::metrics;

const PROMETHEUS_TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Binds at once, so that an address in use stops the start; serves on a thread of its own. The recorder is made there,
/// too: it calibrates a clock, which was seen to take 200 ms (3 of 301 starts), while clients wait to be let in.
pub fn start(address: SocketAddr) -> io::Result<JoinHandle<()>> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("admin".into()).spawn(move || {
        let recorder = PrometheusBuilder::new().build_recorder();
        let exporter = recorder.handle();
        if ::metrics::set_global_recorder(recorder).is_err() {
            tracing::error!("metrics are recorded elsewhere in this process");
        }
        metrics::describe();
        let served = runtime.block_on(async {
            let listener = tokio::net::TcpListener::from_std(listener)?;
            axum::serve(listener, router(exporter)).await
        });
        if let Err(error) = served {
            tracing::error!(%error, "metrics are served no more");
        }
    })
}

fn router(exporter: PrometheusHandle) -> Router {
    let metrics = move || async move { ([(header::CONTENT_TYPE, PROMETHEUS_TEXT)], exporter.render()) };
    Router::new().route("/metrics", get(metrics)).route("/livez", get(|| async { "ok\n" }))
}
