//! `spin.toml`: the part of Spin's manifest (version 2) that this application uses.
//!
//! A setting that Spin would act on and this host cannot is refused with its name. Settings that do
//! not change how a component runs (descriptions, build commands) are ignored.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use serde::Deserialize;

use crate::database::DATABASE;
use crate::routes::Route;
use crate::variables::{Declaration, check_name};

/// An application: one component, the paths it serves, and its configuration.
#[derive(Debug, PartialEq, Eq)]
pub struct Manifest {
    /// The folder of the manifest.
    pub folder: PathBuf,
    /// `[variables]`.
    pub variables: BTreeMap<String, Declaration>,
    /// Each `[[trigger.http]]`; at least one.
    pub routes: Vec<Route>,
    /// The component that all routes name.
    pub component: Component,
}

/// `[component.<id>]`.
#[derive(Debug, PartialEq, Eq)]
pub struct Component {
    /// Its name in the manifest.
    pub id: String,
    /// The component's file; relative paths start at the manifest's folder.
    pub source: PathBuf,
    /// Templates, which [`crate::outbound`] parses.
    pub allowed_outbound_hosts: Vec<String>,
    /// Templates, which [`crate::variables`] parses.
    pub variables: BTreeMap<String, String>,
    /// Whether it may use the SQLite database `default`.
    pub sqlite: bool,
    /// Whether the host sends it `OPTIONS` periodically.
    ///
    /// The component then processes the data that it has left in its database.
    pub looks_after: bool,
}

/// The content of the file.
#[derive(Deserialize)]
struct File {
    spin_manifest_version: Option<toml::Value>,
    #[serde(default)]
    variables: BTreeMap<String, Declaration>,
    #[serde(default)]
    trigger: BTreeMap<String, Vec<Trigger>>,
    #[serde(default)]
    component: BTreeMap<String, ComponentTable>,
}

#[derive(Deserialize)]
struct Trigger {
    route: Option<toml::Value>,
    component: Option<toml::Value>,
    #[serde(flatten)]
    rest: BTreeMap<String, toml::Value>,
}

#[derive(Deserialize)]
struct ComponentTable {
    source: Option<toml::Value>,
    #[serde(default)]
    allowed_outbound_hosts: Vec<String>,
    #[serde(default)]
    variables: BTreeMap<String, String>,
    #[serde(default)]
    sqlite_databases: Vec<String>,
    #[serde(default)]
    tool: Tools,
    #[serde(flatten)]
    rest: BTreeMap<String, toml::Value>,
}

/// `[component.<id>.tool]`, with a table for each tool. Spin ignores it.
#[derive(Deserialize, Default)]
struct Tools {
    #[serde(default, rename = "verve-host")]
    verve_host: OfVerveHost,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct OfVerveHost {
    #[serde(default)]
    look_after: bool,
}

/// Keys of a trigger or component that do not change how the component runs.
const HARMLESS: [&str; 5] = ["build", "description", "exclude_files", "id", "targets"];

impl Manifest {
    /// Reads a manifest, or the `spin.toml` of a folder.
    ///
    /// # Errors
    /// If the file cannot be read, is not a manifest, or requires something that this host does not
    /// offer. The message names the file, and the line if it is known.
    pub fn read(path: &Path) -> anyhow::Result<Self> {
        let path = if path.is_dir() {
            path.join("spin.toml")
        } else {
            path.to_owned()
        };
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("cannot read the manifest {}; --from names another", path.display()))?;
        let folder = path.parent().unwrap_or(Path::new(""));
        Self::parse(&text, folder).with_context(|| path.display().to_string())
    }

    /// Parses the text of a manifest that is in `folder`.
    ///
    /// # Errors
    /// As for [`Manifest::read`], but the message does not name the file.
    pub fn parse(text: &str, folder: &Path) -> anyhow::Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
            let line = 1 + before.matches('\n').count();
            anyhow::anyhow!("line {line}: {}", error.message().replace('\n', ", "))
        })?;
        match &file.spin_manifest_version {
            Some(toml::Value::Integer(2)) => {}
            Some(_) => bail!("`spin_manifest_version` is not the one supported here: expected 2"),
            None => bail!("not a Spin manifest: `spin_manifest_version = 2` is missing"),
        }
        let (id, routes) = read_triggers(file.trigger)?;
        let Some(table) = file
            .component
            .into_iter()
            .find_map(|(name, table)| (name == id).then_some(table))
        else {
            bail!("[[trigger.http]] names the component `{id}`, but there is no [component.{id}]");
        };
        let component = read_component(table, &id, folder).with_context(|| format!("in [component.{id}]"))?;
        Ok(Self {
            folder: folder.to_owned(),
            variables: file.variables,
            routes,
            component,
        })
    }
}

/// Returns the component that the triggers name, and their routes.
fn read_triggers(triggers: BTreeMap<String, Vec<Trigger>>) -> anyhow::Result<(String, Vec<Route>)> {
    if let Some(kind) = triggers.keys().find(|kind| *kind != "http") {
        bail!("[[trigger.{kind}]] is not supported here, only [[trigger.http]]");
    }
    let mut named: Option<String> = None;
    let mut routes = Vec::new();
    for trigger in triggers.into_values().flatten() {
        refuse_unsupported(&trigger.rest).context("in [[trigger.http]]")?;
        let (Some(toml::Value::String(route)), Some(toml::Value::String(id))) = (trigger.route, trigger.component)
        else {
            bail!("[[trigger.http]] needs `route = \"/path\"` and `component = \"id\"`, both as plain text");
        };
        if let Some(other) = named.as_ref().filter(|named| **named != id) {
            bail!("the routes go to `{other}` and to `{id}`, but only one component can run here");
        }
        routes.push(Route::try_new(&route).with_context(|| format!("route {route:?}"))?);
        named = Some(id);
    }
    let id = named.context("there is no [[trigger.http]], so no request could reach a component")?;
    Ok((id, routes))
}

fn read_component(table: ComponentTable, id: &str, folder: &Path) -> anyhow::Result<Component> {
    refuse_unsupported(&table.rest)?;
    let Some(toml::Value::String(source)) = table.source else {
        bail!("`source` has to be the path of a compiled component");
    };
    ensure!(
        !source.is_empty(),
        "`source` is empty: expected the path of a compiled component"
    );
    for name in table.variables.keys() {
        check_name(name)?;
    }
    if let Some(other) = table.sqlite_databases.iter().find(|name| *name != DATABASE) {
        bail!("`sqlite_databases` names {other:?}, but the only database here is {DATABASE:?}");
    }
    Ok(Component {
        id: id.to_owned(),
        source: folder.join(source),
        allowed_outbound_hosts: table.allowed_outbound_hosts,
        variables: table.variables,
        sqlite: !table.sqlite_databases.is_empty(),
        looks_after: table.tool.verve_host.look_after,
    })
}

fn refuse_unsupported(rest: &BTreeMap<String, toml::Value>) -> anyhow::Result<()> {
    if rest.keys().any(|key| key.starts_with("dependencies")) {
        bail!(
            "`dependencies` are not composed here: compose the component with them beforehand, with `wac plug`, or run the application with Spin"
        );
    }
    match rest.keys().find(|key| !HARMLESS.contains(&key.as_str())) {
        Some(key) => bail!("`{key}` is not supported here; run the application with Spin"),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        spin_manifest_version = 2
        [application]
        name = "app"
        authors = ["someone"]
        [variables]
        plain = { default = "x" }
        token = { required = true, secret = true }
        [[trigger.http]]
        route = "/a/..."
        component = "c"
        [component.c]
        description = "counts"
        source = "target/c.wasm"
        allowed_outbound_hosts = ["redis://*:*"]
        sqlite_databases = ["default"]
        [component.c.variables]
        plain = "{{ plain }}"
        [component.c.build]
        command = "make"
        [component.c.tool.verve-host]
        look_after = true
        [component.c.tool.other]
        x = 1
    "#;

    fn error_of(text: &str) -> String {
        match Manifest::parse(text, Path::new("")) {
            Ok(_) => String::new(),
            Err(error) => format!("{error:#}"),
        }
    }

    #[test]
    fn a_good_manifest() {
        let manifest = Manifest::parse(GOOD, Path::new("/app")).expect("a good manifest");
        let expected = Manifest {
            folder: PathBuf::from("/app"),
            variables: BTreeMap::from([
                (
                    "plain".to_owned(),
                    Declaration {
                        default: Some("x".to_owned()),
                        required: false,
                    },
                ),
                (
                    "token".to_owned(),
                    Declaration {
                        default: None,
                        required: true,
                    },
                ),
            ]),
            routes: vec![Route::try_new("/a/...").expect("a route")],
            component: Component {
                id: "c".to_owned(),
                source: PathBuf::from("/app/target/c.wasm"),
                allowed_outbound_hosts: vec!["redis://*:*".to_owned()],
                variables: BTreeMap::from([("plain".to_owned(), "{{ plain }}".to_owned())]),
                sqlite: true,
                looks_after: true,
            },
        };
        assert_eq!(manifest, expected);
    }

    #[test]
    fn the_manifest_of_this_application() {
        let path = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("..");
        let manifest = Manifest::read(&path).expect("the manifest of this application");
        assert!(manifest.routes.iter().any(|route| route.takes("/api/verve/accept")));
    }

    #[test]
    fn errors_of_a_manifest() {
        let cases = [
            ("spin_manifest_version = 2", "spin_manifest_version = 1", "expected 2"),
            (
                "spin_manifest_version = 2",
                "",
                "`spin_manifest_version = 2` is missing",
            ),
            ("[variables]", "[variables", "line 6: "),
            (
                "default = \"x\"",
                "default = 5",
                "line 7: invalid type: integer `5`, expected a string",
            ),
            (
                "[[trigger.http]]",
                "[[trigger.redis]]",
                "[[trigger.redis]] is not supported",
            ),
            ("route = \"/a/...\"", "route = { private = true }", "needs `route = "),
            (
                "route = \"/a/...\"",
                "route = \"/:a\"",
                "route \"/:a\": expected \"/path\"",
            ),
            ("component = \"c\"", "component = \"d\"", "there is no [component.d]"),
            (
                "component = \"c\"",
                "component = \"c\"\nexecutor = { type = \"wagi\" }",
                "`executor` is not supported",
            ),
            ("source = \"target/c.wasm\"", "", "`source` has to be the path"),
            (
                "description = \"counts\"",
                "files = [\"a\"]",
                "in [component.c]: `files` is not supported",
            ),
            (
                "description = \"counts\"",
                "dependencies_inherit_configuration = true",
                "compose the component with them beforehand",
            ),
            ("plain = \"{{", "Plain = \"{{", "`Plain` is no name"),
            ("look_after", "looks_after", "unknown field `looks_after`"),
            ("route = \"/a/...\"\n        component = \"c\"", "", "needs `route = "),
        ];
        for (from, to, expected) in cases {
            let text = GOOD.replacen(from, to, 1);
            assert_ne!(text, GOOD, "{from:?} is not in the manifest");
            let error = error_of(&text);
            assert!(error.contains(expected) && !error.contains('\n'), "{to:?}: {error:?}");
        }
        let two = GOOD.replacen(
            "[component.c]",
            "[[trigger.http]]\nroute = \"/b\"\ncomponent = \"d\"\n[component.c]",
            1,
        );
        assert!(error_of(&two).contains("only one component"));
        assert!(error_of("spin_manifest_version = 2").contains("no [[trigger.http]]"));
    }
}
