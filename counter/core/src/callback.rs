//! The callback of a request: the endpoint that receives the count.

use verve_protocol::{Endpoint, Method};

/// A callback that is requested together with an id.
///
/// Soon afterwards, the reporter sends the count that the id's window has at that time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    /// The endpoint to call.
    pub endpoint: Endpoint,
    /// The method; `None` means that of the variable `callback_method`.
    pub method: Option<Method>,
}
