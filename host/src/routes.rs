//! The routes: which paths go to the component.

use std::fmt;

/// A route of the manifest: `/exact` or `/prefix/...`.
///
/// The second form matches the prefix and all paths below it.
///
/// Slashes at either end of a route or path are ignored, as in Spin: `/accept` also matches
/// `/accept/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// The path without slashes at its ends and without the wildcard.
    path: String,
    wildcard: bool,
}

/// The error for a text that is not a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("expected \"/path\" or \"/path/...\"; patterns such as \":name\" or \"*\" are not supported")]
pub struct InvalidRoute;

impl Route {
    /// Parses a route of the manifest.
    ///
    /// # Errors
    /// If it does not start with a slash, or has a pattern other than a trailing `/...`.
    pub fn try_new(text: &str) -> Result<Self, InvalidRoute> {
        let (path, wildcard) = match text.strip_suffix("/...") {
            Some(prefix) => (prefix, true),
            None => (text, false),
        };
        if !text.starts_with('/') || path.contains(['*', ':', '?', '#']) || path.contains("...") {
            return Err(InvalidRoute);
        }
        Ok(Self {
            path: path.trim_matches('/').to_owned(),
            wildcard,
        })
    }

    /// Returns the shortest path that the route matches.
    pub fn root(&self) -> String {
        format!("/{}", self.path)
    }

    /// Returns whether requests for this path (without query) go to the component.
    pub fn takes(&self, path: &str) -> bool {
        match path.trim_matches('/').strip_prefix(self.path.as_str()) {
            Some("") => true,
            Some(rest) => self.wildcard && (self.path.is_empty() || rest.starts_with('/')),
            None => false,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "/{}{}", self.path, if self.wildcard { " (wildcard)" } else { "" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_take_paths() {
        let cases = [
            ("/a/b", "/a/b", true),
            ("/a/b", "/a/b/", true),
            ("/a/b", "/a", false),
            ("/a/b", "/a/bc", false),
            ("/a/b", "/a/b/c", false),
            ("/a/b", "/A/b", false),
            ("/", "/", true),
            ("/", "/a", false),
            ("/a/...", "/a", true),
            ("/a/...", "/a/", true),
            ("/a/...", "/a/b/c", true),
            ("/a/...", "/ab", false),
            ("/...", "/", true),
            ("/...", "/a/b", true),
        ];
        for (route, path, taken) in cases {
            assert_eq!(
                Route::try_new(route).map(|route| route.takes(path)),
                Ok(taken),
                "{route} {path}"
            );
        }
    }

    #[test]
    fn unknown_routes() {
        for text in ["", "a", "...", "/a/*", "/:id", "/a/.../b", "/a?b", "/a..."] {
            assert_eq!(Route::try_new(text), Err(InvalidRoute), "{text:?}");
        }
    }
}
