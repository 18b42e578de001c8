//! The API: which handler responds to which request. Requests are parsed here into the types of the
//! [`hub`](crate::hub). No module below sees a header, and this module sees no connection.

mod admin;
mod bodies;
mod body;
mod caller;
mod codings;
mod cors;
mod credentials;
mod delete;
mod drafts;
mod events;
mod fields;
mod forwarded;
mod headers;
mod history;
mod media_type;
mod multipart;
mod options;
mod origin;
mod page;
mod problem;
mod public;
mod publish;
mod renewal;
mod reply;
mod state;

use std::convert::Infallible;
use std::sync::{Arc, PoisonError, RwLock};

use axum::Router;
use axum::body::HttpBody;
use axum::extract::{Extension, Request, State as Extract};
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, Method, Response, StatusCode, header};
use axum::response::IntoResponse;
use tower::Service;

use crate::limits::Peer;
use cors::Cors;
use origin::Trust;
use problem::{Problem, only};

pub(crate) use bodies::Bodies;
pub(crate) use options::Options;
pub(crate) use public::Public;
pub(crate) use reply::{Body, Reply};
pub(crate) use state::State;

/// No page of another origin gets a response's bytes into its process, as an image or a script. Pages of an
/// allowed origin read by CORS, which this policy does not concern.
const RESOURCE_POLICY: HeaderName = HeaderName::from_static("cross-origin-resource-policy");

/// No page of another origin keeps a hold of a window in which it opened a response. A publish's receipt is
/// without: no window shows it.
const OPENER_POLICY: HeaderName = HeaderName::from_static("cross-origin-opener-policy");

const SAME_ORIGIN: HeaderValue = HeaderValue::from_static("same-origin");

/// Responds to every request to a hub.
#[derive(Debug)]
pub(crate) struct Api {
    current: RwLock<Arc<Current>>,
}

/// What responds by the settings that are in force now. A request that came before others were goes by it to
/// its end.
#[derive(Debug)]
struct Current {
    state: Arc<State>,
    /// Routes all other requests: see [`Current::route`].
    router: Router,
    /// The same below the page's own path.
    page: Router,
    /// Lets pages of other origins read responses. `None` if no other origin is allowed.
    cors: Option<Cors>,
}

impl Api {
    pub(crate) fn new(state: State) -> Self {
        Api { current: RwLock::new(Arc::new(Current::new(state))) }
    }

    /// Goes by another state from now on.
    pub(crate) fn change(&self, change: impl FnOnce(State) -> State) {
        let current = Current::new(change((*self.current().state).clone()));
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(current);
    }

    /// The response to a request on a connection from this address.
    pub(crate) async fn respond(&self, connection: Peer, request: Request) -> Response<Reply> {
        self.current().respond(connection, request).await
    }

    /// Ends every stream, now and later.
    pub(crate) fn end_streams(&self) {
        self.current().state.hub.end_subscriptions();
    }

    fn current(&self) -> Arc<Current> {
        Arc::clone(&self.current.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Current {
    fn new(state: State) -> Self {
        let cors = Cors::new(&state.options);
        let state = Arc::new(state);
        let page = router().merge(page::routes()).with_state(Arc::clone(&state));
        let router = match &state.public {
            None => page.clone(),
            Some(public) => {
                let public = Arc::clone(public);
                let file = async move |Extract(state): Extract<Arc<State>>,
                                       Extension(address): Extension<Peer>,
                                       request: Request| {
                    public.respond(&state.hub, address, request).await
                };
                router().fallback(file).with_state(Arc::clone(&state))
            }
        };
        Current { state, router, page, cors }
    }

    async fn respond(&self, connection: Peer, request: Request) -> Response<Reply> {
        let address = forwarded::address(&self.state.trusted, connection, request.headers());
        let Some(cors) = &self.cors else { return self.check(address, request).await };
        // Around the check, so that pages of an allowed origin can read a refusal too.
        let checked = |request| async move { Ok::<_, Infallible>(self.check(address, request).await) };
        cors.around(request, checked).await
    }

    async fn check(&self, address: Peer, request: Request) -> Response<Reply> {
        let (head, mut body) = request.into_parts();
        let is_publish = head.method == Method::POST;
        // With `Expect`, the body is sent only after `100 Continue`: there is nothing to drain.
        let expects = head.headers.contains_key(header::EXPECT);
        let result = match origin::check(&self.state, &head) {
            Ok(trust) => self.route(address, trust, head, &mut body).await,
            Err(problem) => Err(problem),
        };
        if let Err(problem) = &result {
            problem.log(address);
        }
        let is_whole = body.is_end_stream() || !expects && body::drain(body).await;
        let is_receipt = is_publish && result.is_ok();
        let mut response = result.unwrap_or_else(|problem| problem.into_response().map(Reply::Body));
        let headers = response.headers_mut();
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if !is_whole {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        // A receipt is for the publisher alone; all else can be loaded by a page, or opened in a window.
        if !is_receipt {
            headers.insert(OPENER_POLICY, SAME_ORIGIN);
            headers.entry(RESOURCE_POLICY).or_insert(SAME_ORIGIN);
        }
        response
    }

    /// Calls the handler of the request. Handlers that need the address are called without the router, which
    /// boxes and clones: that costs as much as parsing a publish.
    async fn route(
        &self,
        address: Peer,
        trust: Trust,
        mut head: Parts,
        body: &mut Body,
    ) -> Result<Response<Reply>, Problem> {
        let state = &*self.state;
        let is_below_page = page::take_prefix(&mut head.uri);
        if head.method == Method::DELETE
            && let Some(id) = below(head.uri.path(), "/messages/").map(str::to_owned)
        {
            let caller = credentials::caller(state, address, &head, trust).await?;
            return delete::delete(state, address, &caller, head, &id).await;
        }
        if head.method == Method::POST
            && let Some(stream) = below(head.uri.path(), "/events/")
        {
            let caller = credentials::caller(state, address, &head, trust).await?;
            return renewal::renew(state, address, &caller, stream);
        }
        match (head.uri.path(), &head.method) {
            ("/messages" | "/messages/", &Method::POST) => {
                let caller = credentials::caller(state, address, &head, trust).await?;
                publish::publish(state, address, &caller, head, body).await
            }
            ("/messages" | "/messages/", &Method::GET) => {
                let caller = credentials::caller(state, address, &head, trust).await?;
                let response = history::read(state, address, &caller, &head).await?;
                Ok(response.map(Reply::Body))
            }
            ("/events" | "/events/", &Method::GET) => {
                let caller = credentials::caller(state, address, &head, trust).await;
                events::subscribe(state, address, caller, &head).await
            }
            ("/admin/revoke", &Method::POST) => {
                let caller = credentials::caller(state, address, &head, trust).await?;
                admin::revoke(&self.state, address, &caller, head, body).await
            }
            _ => {
                head.extensions.insert(address);
                let request = Request::from_parts(head, Body::empty());
                let router = if is_below_page { &self.page } else { &self.router };
                let result = router.clone().call(request).await;
                Ok(result.unwrap_or_else(|never| match never {}).map(Reply::Body))
            }
        }
    }
}

/// The id in the path of one message, or of one stream.
fn below<'a>(path: &'a str, prefix: &str) -> Option<&'a str> {
    path.strip_prefix(prefix).filter(|id| !id.is_empty() && !id.contains('/'))
}

/// Routes all requests but those of [`Current::route`], and of the page. It is given no bodies.
fn router() -> Router<Arc<State>> {
    let history = async |Extract(state): Extract<Arc<State>>, address: Extension<Peer>, request: Request| {
        let (head, _) = request.into_parts();
        let caller = credentials::caller(&state, *address, &head, Trust::Own).await?;
        history::respond_to_head(&state, &caller, &head.uri)
    };
    let events = async |Extract(state): Extract<Arc<State>>, address: Extension<Peer>, request: Request| {
        let (head, _) = request.into_parts();
        let caller = credentials::caller(&state, *address, &head, Trust::Own).await;
        events::respond_to_head(&state, caller, &head)
    };
    let caller = async |Extract(state): Extract<Arc<State>>, address: Extension<Peer>, request: Request| {
        let (head, _) = request.into_parts();
        let caller = credentials::caller(&state, *address, &head, Trust::Own).await;
        caller.map(|caller| caller::respond(&caller)).map_err(Problem::from)
    };
    let (messages, events) = (only("GET, HEAD, POST").head(history), only("GET, HEAD").head(events));
    // With a slash at the end too: programs add one, and what redirects a POST may lose its body.
    Router::new()
        .route("/messages", messages.clone())
        .route("/messages/", messages)
        .route("/messages/{id}", only("DELETE"))
        .route("/events", events.clone())
        .route("/events/", events)
        .route("/events/{stream}", only("POST"))
        .route("/admin/revoke", only("POST"))
        .route("/caller", only("GET, HEAD").get(caller))
        .merge(page::client())
        .fallback(async || Problem::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
}
