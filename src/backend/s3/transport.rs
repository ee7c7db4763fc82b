//! Lends our HTTP client to the SDK.

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http_body_util::BodyExt;

use crate::backend::count::Request as Sort;
use crate::backend::remote::http::Http;

/// The client as the SDK wants it.
#[derive(Clone, Debug)]
pub(super) struct Transport {
    http: Http,
}

impl Transport {
    pub(super) fn new(http: Http) -> Self {
        Self { http }
    }
}

/// What a request is for, as far as its form tells.
fn sort(request: &HttpRequest) -> Sort {
    let query = request.uri().split_once('?').map_or("", |(_, query)| query);
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    match request.method() {
        "PUT" if has("x-id") || has("partNumber") => Sort::Put,
        "GET" if has("list-type") || has("encoding-type") => Sort::List,
        "GET" if has("x-id") => Sort::Get,
        "HEAD" => Sort::Head,
        "DELETE" => Sort::Delete,
        _ => Sort::Other,
    }
}

impl HttpConnector for Transport {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let http = self.http.clone();
        HttpConnectorFuture::new(async move {
            let sort = sort(&request);
            let broken = |error: Box<dyn std::error::Error + Send + Sync>| ConnectorError::user(error);
            let request = request.try_into_http1x().map_err(|error| broken(error.into()))?;
            let request = request.map(|body: SdkBody| body.boxed_unsync());
            let response = http.send(sort, request).await.map_err(|failure| ConnectorError::io(failure.into()))?;
            let response = response.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(response).map_err(|error| broken(error.into()))
        })
    }
}

impl HttpClient for Transport {
    fn http_connector(&self, _: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}
