//! Who is to be told a count.

use verve_protocol::{Endpoint, Method};

/// A callback that is asked for with an id: soon after, the reporter tells the count of the id's window as it is then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    /// Whom to call.
    pub endpoint: Endpoint,
    /// How; the variable `callback_method` decides where this does not.
    pub method: Option<Method>,
}
