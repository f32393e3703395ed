//! The application's variables: the sources of their values, and the templates.
//!
//! A variable may be secret, so errors here show only names, never a value.

use std::collections::BTreeMap;

use serde::Deserialize;

/// How a variable is declared.
#[derive(Debug, Deserialize, PartialEq, Eq)]
pub struct Declaration {
    /// The value if it is not set.
    pub default: Option<String>,
    /// Whether it must be set.
    #[serde(default)]
    pub required: bool,
}

/// Every declared variable with its value.
#[derive(Default)]
pub struct Values {
    values: BTreeMap<String, String>,
    given: Vec<String>,
}

/// The prefix of a variable's name in the environment, as in Spin.
const PREFIX: &str = "SPIN_VARIABLE_";
/// The similarity above which a name is suggested, from 0 to 1.
const ALIKE: f64 = 0.8;

/// A problem with variables or with a template.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VariableError {
    /// `--variable` without an `=`.
    #[error("--variable takes NAME=VALUE, such as window_seconds=5; the {0}. one given has no `=`")]
    NoAssignment(usize),
    /// `--variable`, or the environment, for a name that the manifest does not declare.
    #[error("{0}: the manifest declares no such variable; {1}")]
    Unknown(String, String),
    /// `--variable` for the same name twice.
    #[error("--variable {0} is given twice")]
    Twice(String),
    /// A required variable has no value.
    #[error("variable `{0}` is required: set it with --variable {0}=VALUE or in the environment as {1}")]
    Missing(String, String),
    /// The manifest uses a name that Spin would not accept.
    #[error("`{0}` is no name of a variable: expected lower-case letters, digits and single underscores between them")]
    InvalidName(String),
    /// A declaration has both a default and `required = true`, or neither.
    #[error("variable `{0}` needs either a default or `required = true`")]
    InvalidDeclaration(String),
    /// A template opens braces and does not close them.
    #[error("a template has `{{{{` without `}}}}`")]
    Unclosed,
    /// A template uses a variable that is not declared.
    #[error("a template uses `{0}`, which [variables] does not declare")]
    Undeclared(String),
}

impl Values {
    /// Determines the value of each declared variable.
    ///
    /// The value comes from `assignments` (`NAME=VALUE`), else from `SPIN_VARIABLE_<NAME>` in the
    /// environment, else it is the default.
    ///
    /// # Errors
    /// If a name is unknown, given twice or not valid, or a required variable has no value.
    pub fn try_new(
        declared: &BTreeMap<String, Declaration>,
        assignments: &[String],
        environment: &BTreeMap<String, String>,
    ) -> Result<Self, VariableError> {
        let unknown = |given: String, name: &str| VariableError::Unknown(given, meant(name, declared));
        for given in environment.keys() {
            if let Some(name) = given.strip_prefix(PREFIX).map(str::to_ascii_lowercase)
                && !declared.contains_key(&name)
            {
                return Err(unknown(given.clone(), &name));
            }
        }
        let mut assigned = BTreeMap::new();
        for (index, assignment) in assignments.iter().enumerate() {
            let (name, value) = assignment
                .split_once('=')
                .ok_or(VariableError::NoAssignment(index + 1))?;
            if !declared.contains_key(name) {
                return Err(unknown(format!("--variable {name}"), name));
            }
            if assigned.insert(name, value).is_some() {
                return Err(VariableError::Twice(name.to_owned()));
            }
        }
        let mut values = BTreeMap::new();
        let mut given = Vec::new();
        for (name, declaration) in declared {
            check_name(name)?;
            if declaration.required == declaration.default.is_some() {
                return Err(VariableError::InvalidDeclaration(name.clone()));
            }
            let in_environment = format!("{PREFIX}{}", name.to_ascii_uppercase());
            let value = if let Some(value) = assigned.get(name.as_str()) {
                given.push(format!("--variable {name}"));
                (*value).to_owned()
            } else if let Some(value) = environment.get(&in_environment) {
                given.push(in_environment);
                value.clone()
            } else {
                let missing = || VariableError::Missing(name.clone(), in_environment);
                declaration.default.clone().ok_or_else(missing)?
            };
            values.insert(name.clone(), value);
        }
        Ok(Self { values, given })
    }

    /// Returns what sets variables: `--variable name` or `SPIN_VARIABLE_NAME` for each.
    ///
    /// All other variables have their default.
    pub fn given(&self) -> &[String] {
        &self.given
    }
}

/// Suggests the most similar declared name, or else lists all names.
fn meant(name: &str, declared: &BTreeMap<String, Declaration>) -> String {
    let alike = declared.keys().map(|other| (strsim::jaro_winkler(name, other), other));
    let most = alike
        .filter(|(alike, _)| *alike > ALIKE)
        .max_by(|(a, _), (b, _)| a.total_cmp(b));
    match most {
        Some((_, other)) => format!("did you mean {other}?"),
        None => format!(
            "it has {}",
            declared.keys().map(String::as_str).collect::<Vec<_>>().join(", ")
        ),
    }
}

/// Checks a name by Spin's rule, so that it fits into an environment variable.
///
/// # Errors
/// If `name` violates the rule.
pub fn check_name(name: &str) -> Result<(), VariableError> {
    let part = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
    if name.starts_with(|c: char| c.is_ascii_lowercase()) && name.split('_').all(part) {
        Ok(())
    } else {
        Err(VariableError::InvalidName(name.to_owned()))
    }
}

/// A text that may contain `{{ variable }}` references.
#[derive(Debug, PartialEq, Eq)]
pub struct Template<'a>(Vec<Part<'a>>);

#[derive(Debug, PartialEq, Eq)]
enum Part<'a> {
    Text(&'a str),
    Variable(&'a str),
}

impl<'a> Template<'a> {
    /// Parses a template.
    ///
    /// # Errors
    /// If braces are opened and not closed.
    pub fn try_new(text: &'a str) -> Result<Self, VariableError> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, opened)) = rest.split_once("{{") {
            let (name, after) = opened.split_once("}}").ok_or(VariableError::Unclosed)?;
            parts.push(Part::Text(before));
            parts.push(Part::Variable(name.trim()));
            rest = after;
        }
        parts.push(Part::Text(rest));
        Ok(Self(parts))
    }

    /// Returns whether the text contains no variable.
    pub fn is_literal(&self) -> bool {
        self.0.len() == 1
    }

    /// Returns the text with the values inserted.
    ///
    /// # Errors
    /// If the template uses a variable that has no value.
    pub fn resolve(&self, values: &Values) -> Result<String, VariableError> {
        let resolve = |part: &Part<'a>| match part {
            Part::Text(text) => Ok(*text),
            Part::Variable(name) => match values.values.get(*name) {
                Some(value) => Ok(value.as_str()),
                None => Err(VariableError::Undeclared((*name).to_owned())),
            },
        };
        self.0.iter().map(resolve).collect()
    }
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// Values for the tests of other modules.
    pub fn values(pairs: &[(&str, &str)]) -> Values {
        let values = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Values {
            values: values.collect(),
            given: Vec::new(),
        }
    }

    fn optional(default: &str) -> Declaration {
        Declaration {
            default: Some(default.to_owned()),
            required: false,
        }
    }

    const REQUIRED: Declaration = Declaration {
        default: None,
        required: true,
    };

    #[test]
    fn the_command_line_beats_the_environment_beats_the_default() {
        let cases: [(&[&str], Option<&str>, &str); 5] = [
            (&[], None, "default"),
            (&[], Some("environment"), "environment"),
            (&["a=flag"], Some("environment"), "flag"),
            (&["a=last=really"], None, "last=really"),
            (&["a="], Some("environment"), ""),
        ];
        for (flags, environment, expected) in cases {
            let declared = BTreeMap::from([("a".to_owned(), optional("default"))]);
            let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
            let environment = environment.map(|value| ("SPIN_VARIABLE_A".to_owned(), value.to_owned()));
            let environment = environment
                .into_iter()
                .chain([("SPIN_OTHER".to_owned(), String::new())]);
            let values = Values::try_new(&declared, &flags, &environment.collect()).expect("good variables");
            assert_eq!(values.values["a"], expected);
            let given = ["--variable a", "SPIN_VARIABLE_A"];
            assert!(values.given().iter().all(|name| given.contains(&name.as_str())));
            assert_eq!(values.given().is_empty(), expected == "default");
        }
    }

    #[test]
    fn wrong_variables() {
        let neither = Declaration {
            default: None,
            required: false,
        };
        let both = Declaration {
            default: Some(String::new()),
            required: true,
        };
        let cases = [
            ("a", optional("x"), "ab", VariableError::NoAssignment(1)),
            (
                "a",
                optional("x"),
                "b=1",
                VariableError::Unknown("--variable b".into(), "it has a".into()),
            ),
            (
                "a_b",
                REQUIRED,
                "",
                VariableError::Missing("a_b".into(), "SPIN_VARIABLE_A_B".into()),
            ),
            ("a__b", optional("x"), "", VariableError::InvalidName("a__b".into())),
            ("a", neither, "", VariableError::InvalidDeclaration("a".into())),
            ("a", both, "", VariableError::InvalidDeclaration("a".into())),
        ];
        for (name, declaration, flag, expected) in cases {
            let declared = BTreeMap::from([(name.to_owned(), declaration)]);
            let flags: Vec<String> = (!flag.is_empty()).then(|| flag.to_owned()).into_iter().collect();
            assert_eq!(
                Values::try_new(&declared, &flags, &BTreeMap::new()).err(),
                Some(expected)
            );
        }
        let declared = BTreeMap::from([
            ("redis_urls".to_owned(), optional("x")),
            ("window_seconds".to_owned(), optional("60")),
        ]);
        let error = |flags: &[&str], environment: &str| {
            let flags: Vec<String> = flags.iter().map(|flag| (*flag).to_owned()).collect();
            let environment = (!environment.is_empty()).then(|| (environment.to_owned(), "hunter2".to_owned()));
            let values = Values::try_new(&declared, &flags, &environment.into_iter().collect());
            values.err().map(|error| error.to_string()).unwrap_or_default()
        };
        assert!(error(&["redis_url=hunter2"], "").ends_with("did you mean redis_urls?"));
        let unknown = error(&[], "SPIN_VARIABLE_WINDOW_SECOND");
        assert!(
            unknown.starts_with("SPIN_VARIABLE_WINDOW_SECOND: ") && unknown.ends_with("window_seconds?"),
            "{unknown}"
        );
        assert!(error(&[], "SPIN_VARIABLE_X").ends_with("it has redis_urls, window_seconds"));
        let twice = error(&["redis_urls=hunter2", "redis_urls=hunter2"], "");
        assert_eq!(twice, "--variable redis_urls is given twice");
    }

    #[test]
    fn names() {
        for (name, valid) in [
            ("a", true),
            ("a1_2b", true),
            ("", false),
            ("1a", false),
            ("_a", false),
            ("a_", false),
            ("aB", false),
        ] {
            assert_eq!(check_name(name).is_ok(), valid, "{name:?}");
        }
    }

    #[test]
    fn templates() {
        let values = values(&[("host", "redis"), ("port", "6379")]);
        let cases = [
            ("", Ok("")),
            ("plain } text", Ok("plain } text")),
            ("{{ host }}", Ok("redis")),
            ("redis://{{host}}:{{ port }}/", Ok("redis://redis:6379/")),
            ("{{ host", Err(VariableError::Unclosed)),
            ("{{ user }}", Err(VariableError::Undeclared("user".into()))),
        ];
        for (text, expected) in cases {
            let resolved = Template::try_new(text).and_then(|template| template.resolve(&values));
            assert_eq!(resolved, expected.map(str::to_owned), "{text:?}");
        }
    }
}
