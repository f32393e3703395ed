//! Listings of the public API of the published crates, so that changes are visible.
//!
//! Each listing is beside its crate. It is made from the sources and without a compiler, so that it
//! does not depend on the compiler. Code that a macro generates is not listed.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use syn::{Attribute, Fields, ImplItem, Item, ItemImpl, ItemUse, Type, UseTree, Visibility};

use crate::sys;

/// The folders of the crates.
const CRATES: [&str; 2] = ["counter", "protocol"];

/// The folders of crates whose items another crate exports as its own.
const INSIDES: [(&str, &str); 1] = [("verve_counter_core", "counter/core")];

/// Checks that the listings agree with the sources.
pub fn check() -> Result<()> {
    for folder in CRATES {
        let path = listed(folder);
        let kept = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let now = listing(folder)?;
        if kept != now {
            let changed = |a: &str, b: &str, sign: &str| -> Vec<String> {
                let known: BTreeSet<&str> = b.lines().collect();
                let others = a.lines().filter(|line| !known.contains(line));
                others.map(|line| format!("{sign} {line}")).collect()
            };
            let changes = [changed(&kept, &now, "-"), changed(&now, &kept, "+")].concat();
            bail!(
                "{} does not match the public items: `cargo xtask reference` writes it again\n{}",
                path.display(),
                changes.join("\n")
            );
        }
    }
    Ok(())
}

/// Writes the listings.
pub fn write() -> Result<()> {
    for folder in CRATES {
        let path = listed(folder);
        fs::write(&path, listing(folder)?).with_context(|| path.display().to_string())?;
        sys::log(&path.display().to_string());
    }
    Ok(())
}

fn listed(folder: &str) -> PathBuf {
    sys::root().join(folder).join("public-api.txt")
}

/// Returns all public items of a crate, module by module.
fn listing(folder: &str) -> Result<String> {
    let root = sys::root().join(folder).join("src/lib.rs");
    let mut modules = vec![("crate".to_owned(), root.clone(), parsed(&root)?)];
    let mut text = String::new();
    while let Some((path, file, all)) = modules.pop() {
        let (mut own, mut items) = (Vec::new(), Vec::new());
        for item in all {
            match item {
                Item::Mod(module) if is_public(&module.vis) => {
                    let path = format!("{path}::{}", module.ident);
                    match module.content {
                        Some((_, all)) => modules.push((path, file.clone(), all)),
                        None => {
                            let file = found(&file, &module.ident.to_string())?;
                            let all = parsed(&file)?;
                            modules.push((path, file, all));
                        }
                    }
                }
                Item::Use(import) if is_public(&import.vis) => items.extend(exported(&import, &file)?),
                item => own.extend(stripped(item)),
            }
        }
        own.extend(implemented(&file, &names(&own))?);
        items.extend(own);
        if !items.is_empty() {
            let file = syn::File {
                shebang: None,
                attrs: Vec::new(),
                items,
            };
            text.push_str(&format!("// {path}\n\n{}\n", prettyplease::unparse(&file)));
        }
        modules.sort_by(|a, b| b.0.cmp(&a.0));
    }
    Ok(text.trim_end().to_owned() + "\n")
}

/// Returns the items of a file.
fn parsed(file: &Path) -> Result<Vec<Item>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let parsed = syn::parse_file(&text).with_context(|| file.display().to_string())?;
    Ok(parsed.items)
}

/// Returns the file of a module that another file declares.
fn found(declared_in: &Path, name: &str) -> Result<PathBuf> {
    let folder = match declared_in.file_stem() {
        Some(stem) if stem != "lib" => declared_in.with_extension(""),
        _ => declared_in.parent().context("a folder")?.to_owned(),
    };
    Ok(folder.join(format!("{name}.rs")))
}

fn is_public(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Returns what a `pub use` exports: the `pub use` as written, or the items.
///
/// The result is the items themselves if they are of a private module, or of a crate that promises
/// nothing.
fn exported(import: &ItemUse, file: &Path) -> Result<Vec<Item>> {
    let mut path = Vec::new();
    let mut tree = &import.tree;
    while let UseTree::Path(next) = tree {
        path.push(next.ident.to_string());
        tree = &next.tree;
    }
    let wanted: Vec<String> = match tree {
        UseTree::Name(name) => vec![name.ident.to_string()],
        UseTree::Group(group) => {
            let names = group.items.iter().filter_map(|tree| match tree {
                UseTree::Name(name) => Some(name.ident.to_string()),
                _ => None,
            });
            names.collect()
        }
        _ => bail!("{}: a `pub use` of everything, or by another name", file.display()),
    };
    let [first, inner @ ..] = path.as_slice() else {
        return Ok(Vec::new());
    };
    let (mut at, modules) = match INSIDES.iter().find(|(name, _)| name == first) {
        Some((_, folder)) => (sys::root().join(folder).join("src/lib.rs"), inner),
        None => (file.to_owned(), path.as_slice()),
    };
    for module in modules {
        at = found(&at, module)?;
        if !at.is_file() {
            // It is of another crate, which has its own listing.
            let mut import = import.clone();
            import.attrs.retain(is_of_interest);
            return Ok(vec![Item::Use(import)]);
        }
    }
    let (mut items, mut below) = (Vec::new(), Vec::new());
    for item in parsed(&at)? {
        match item {
            // The module may in turn export items of a module below it.
            Item::Use(import) if is_public(&import.vis) => below.extend(exported(&import, &at)?),
            item => items.extend(stripped(item)),
        }
    }
    items.retain(|item| named(item).is_some_and(|name| wanted.contains(&name)));
    items.extend(implemented(&at, &names(&items))?);
    let is_wanted = |item: &Item| match item {
        Item::Impl(item) => of(item).is_some_and(|name| wanted.contains(&name)),
        item => named(item).is_some_and(|name| wanted.contains(&name)),
    };
    items.extend(below.into_iter().filter(is_wanted));
    for item in &mut items {
        if let Some(attributes) = attributes(item) {
            attributes.splice(
                0..0,
                import
                    .attrs
                    .iter()
                    .filter(|attribute| is_of_interest(attribute))
                    .cloned(),
            );
        }
    }
    Ok(items)
}

/// Returns the attributes of an item that has a name.
fn attributes(item: &mut Item) -> Option<&mut Vec<Attribute>> {
    Some(match item {
        Item::Struct(item) => &mut item.attrs,
        Item::Enum(item) => &mut item.attrs,
        Item::Fn(item) => &mut item.attrs,
        Item::Const(item) => &mut item.attrs,
        Item::Type(item) => &mut item.attrs,
        Item::Trait(item) => &mut item.attrs,
        _ => return None,
    })
}

/// Returns the name of the type that an implementation is for.
fn of(item: &ItemImpl) -> Option<String> {
    match &*item.self_ty {
        Type::Path(of) => Some(of.path.segments.last()?.ident.to_string()),
        _ => None,
    }
}

fn named(item: &Item) -> Option<String> {
    let name = match item {
        Item::Struct(item) => &item.ident,
        Item::Enum(item) => &item.ident,
        Item::Fn(item) => &item.sig.ident,
        Item::Const(item) => &item.ident,
        Item::Type(item) => &item.ident,
        Item::Trait(item) => &item.ident,
        _ => return None,
    };
    Some(name.to_string())
}

fn names(items: &[Item]) -> BTreeSet<String> {
    items.iter().filter_map(named).collect()
}

fn is_of_interest(attribute: &Attribute) -> bool {
    ["cfg", "derive", "must_use", "non_exhaustive"]
        .iter()
        .any(|name| attribute.path().is_ident(name))
}

/// Returns the visible part of an item, if the item is public.
///
/// It has no body, no private field and no documentation.
fn stripped(item: Item) -> Option<Item> {
    let strip = |fields: &mut Fields| match fields {
        Fields::Named(fields) => {
            fields.named = fields
                .named
                .iter()
                .filter(|field| is_public(&field.vis))
                .cloned()
                .collect();
            fields.named.iter_mut().for_each(|field| field.attrs.clear());
        }
        Fields::Unnamed(fields) => {
            fields.unnamed = fields
                .unnamed
                .iter()
                .filter(|field| is_public(&field.vis))
                .cloned()
                .collect();
        }
        Fields::Unit => {}
    };
    match item {
        Item::Struct(mut item) if is_public(&item.vis) => {
            item.attrs.retain(is_of_interest);
            strip(&mut item.fields);
            Some(item.into())
        }
        Item::Enum(mut item) if is_public(&item.vis) => {
            item.attrs.retain(is_of_interest);
            for variant in &mut item.variants {
                variant.attrs.clear();
                variant.fields.iter_mut().for_each(|field| field.attrs.clear());
            }
            Some(item.into())
        }
        Item::Fn(mut item) if is_public(&item.vis) => {
            item.attrs.retain(is_of_interest);
            item.block.stmts.clear();
            Some(item.into())
        }
        Item::Const(mut item) if is_public(&item.vis) => {
            item.attrs.retain(is_of_interest);
            Some(item.into())
        }
        Item::Type(mut item) if is_public(&item.vis) => {
            item.attrs.retain(is_of_interest);
            Some(item.into())
        }
        Item::Trait(mut item) if is_public(&item.vis) => {
            item.attrs.retain(is_of_interest);
            Some(item.into())
        }
        _ => None,
    }
}

/// Returns the implementations of these types in their file and in modules below.
fn implemented(file: &Path, names: &BTreeSet<String>) -> Result<Vec<Item>> {
    let below = match file.file_stem() {
        Some(stem) if stem != "lib" => files(&file.with_extension(""))?,
        _ => Vec::new(),
    };
    let mut implemented = Vec::new();
    for file in [file.to_owned()].into_iter().chain(below) {
        for item in parsed(&file)? {
            if let Item::Impl(item) = item
                && of(&item).is_some_and(|name| names.contains(&name))
            {
                implemented.extend(seen_of(item));
            }
        }
    }
    Ok(implemented)
}

/// Returns the Rust files in a folder, if it exists, and in all folders below it.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Returns the visible part of an implementation.
///
/// It has the public functions and constants. Of a trait it shows only that the trait is
/// implemented.
fn seen_of(mut item: ItemImpl) -> Option<Item> {
    item.attrs.retain(is_of_interest);
    if item.trait_.is_some() {
        item.items.clear();
        return Some(item.into());
    }
    item.items.retain_mut(|item| match item {
        ImplItem::Fn(function) if is_public(&function.vis) => {
            function.attrs.retain(is_of_interest);
            function.block.stmts.clear();
            true
        }
        ImplItem::Const(constant) if is_public(&constant.vis) => {
            constant.attrs.retain(is_of_interest);
            true
        }
        _ => false,
    });
    (!item.items.is_empty()).then(|| item.into())
}
