//! The applications in `examples`, which count with Verve's library, and `guest`.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use wac_graph::types::Package;
use wac_graph::{CompositionGraph, EncodeOptions};

use crate::host::{Instance, Kind, Options};
use crate::paths;

/// The name of the application for the tests.
pub const GUEST: &str = "guest";

/// Returns the options of an example's application, with these variables.
///
/// A variable may be one of its manifest or another one. Spin composes some applications itself.
/// For a host that does not, this function composes the application first and uses another
/// manifest.
///
/// # Errors
/// Fails if its components are not built.
pub fn options(kind: Kind, name: &str, variables: &[(&str, &str)]) -> Result<Options> {
    let folder = if name == GUEST { "tests" } else { "examples" };
    let folder = paths::repository().join(folder).join(name);
    let read = |file: &str| -> Result<toml::Table> {
        let file = folder.join(file);
        let text = fs::read_to_string(&file).with_context(|| file.display().to_string())?;
        Ok(toml::from_str(&text)?)
    };
    let mut manifest = read("spin.toml")?;
    if matches!(kind, Kind::VerveHost | Kind::VerveHostP2) && manifest["component"][name].get("dependencies").is_some()
    {
        compose(&manifest, name)?;
        manifest = read("composed.toml")?;
    }
    for (variable, value) in variables {
        set(&mut manifest, name, variable, value).with_context(|| format!("{name}: variable {variable}"))?;
    }
    // In the folder of a test, the components are beside the manifest.
    let text = toml::to_string(&manifest)?.replace("\"../../target", "\"target");
    Ok(Instance::options(kind).manifest(text))
}

/// Sets a variable of the component to this value, and adds it if necessary.
fn set(manifest: &mut toml::Table, component: &str, variable: &str, value: &str) -> Option<()> {
    let all = manifest.get_mut("variables")?.as_table_mut()?;
    let of_application = all.entry(variable).or_insert_with(|| toml::Table::new().into());
    of_application
        .as_table_mut()?
        .insert("default".to_owned(), value.into());
    let component = manifest.get_mut("component")?.get_mut(component)?;
    let of_component = component.get_mut("variables")?.as_table_mut()?;
    of_component.insert(variable.to_owned(), format!("{{{{ {variable} }}}}").into());
    Some(())
}

/// Composes the component with its dependency, as `wac plug` does.
fn compose(manifest: &toml::Table, name: &str) -> Result<()> {
    let component = &manifest["component"][name];
    let file = |path: &toml::Value| Path::new(path.as_str()?).file_name().map(ToOwned::to_owned);
    let dependency = component["dependencies"].as_table().and_then(|all| all.values().next());
    let plugged = dependency.and_then(|dependency| file(dependency.get("path")?));
    let (socket, plugged) = file(&component["source"]).zip(plugged).context("no path")?;
    let mut graph = CompositionGraph::new();
    let mut package = |file: OsString| {
        let bytes = fs::read(paths::components().join(&file))
            .with_context(|| format!("{}: run `cargo xtask build components`", file.display()))?;
        let package = Package::from_bytes(&file.to_string_lossy(), None, bytes, graph.types_mut())?;
        anyhow::Ok(graph.register_package(package)?)
    };
    let [socket, plugged] = [package(socket)?, package(plugged)?];
    wac_graph::plug(&mut graph, vec![plugged], socket)?;
    // Written to a temporary file and renamed, because other tests read this folder.
    let whole = tempfile::NamedTempFile::new_in(paths::components())?;
    fs::write(&whole, graph.encode(EncodeOptions::default())?)?;
    whole.persist(paths::components().join(format!("{name}_composed.wasm")))?;
    Ok(())
}
