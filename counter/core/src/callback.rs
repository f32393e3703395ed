//! Who is to be told a count.

use verve_protocol::{Endpoint, Method};

/// A callback that is asked for with an id: soon after, the reporter tells the count of the id's window as it is then.
///
/// ```
/// use verve_counter_core::callback::Callback;
///
/// let callback = Callback {
///     endpoint: "https://example.com/hook?player=7".parse()?,
///     method: Some("post".parse()?),
/// };
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Callback {
    /// Whom to call.
    pub endpoint: Endpoint,
    /// How; the variable `callback_method` decides where this does not.
    pub method: Option<Method>,
}
