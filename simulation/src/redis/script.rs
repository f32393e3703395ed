//! Runs the scripts unchanged, with the Lua of Redis: version 5.1.
//!
//! This version has only one type of numbers.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use mlua::{Error, Function, Lua, MultiValue, Table, Value};
use sha1::{Digest as _, Sha1};

use super::data::Data;
use super::{Answer, in_capitals};

/// A server's interpreter.
pub struct Scripts {
    lua: Lua,
    compiled: RefCell<BTreeMap<String, Function>>,
    /// The loaded scripts, by their hashes.
    loaded: RefCell<BTreeMap<String, Rc<str>>>,
    /// Whether the current script was redirected here for keys that move.
    is_asking: Rc<Cell<bool>>,
}

impl Scripts {
    /// Creates the interpreter of a server with this data.
    ///
    /// `owns` returns whether the server owns a key.
    pub fn new(data: &Rc<RefCell<Data>>, owns: impl Fn(&str) -> bool + 'static) -> Self {
        let scripts = Self {
            lua: Lua::new(),
            compiled: RefCell::default(),
            loaded: RefCell::default(),
            is_asking: Rc::default(),
        };
        let is_asking = scripts.is_asking.clone();
        let is_here = move |key: &str| is_asking.get() || owns(key);
        let library = library(&scripts.lua, data.clone(), Rc::new(is_here));
        library.expect("memory for tables");
        scripts
    }

    /// Stores a script under the hash of the text that was sent, and returns that hash.
    pub fn load(&self, sent: &str, script: &str) -> String {
        let hash = sha1_hex(sent);
        self.loaded.borrow_mut().insert(hash.clone(), script.into());
        hash
    }

    /// Returns the script with a hash.
    pub fn loaded(&self, hash: &str) -> Option<Rc<str>> {
        self.loaded.borrow().get(hash).cloned()
    }

    /// Removes all loaded scripts, as a server does when it restarts.
    pub fn forget(&self) {
        self.loaded.borrow_mut().clear();
    }

    /// Runs a script, which may use only keys that are on this server.
    pub fn run(&self, script: &str, keys: &[String], arguments: &[String], is_asking: bool) -> Answer {
        self.is_asking.set(is_asking);
        match self.try_to_run(script, keys, arguments) {
            Ok(answer) => answer,
            Err(error) => Answer::Error(words(&error)),
        }
    }

    fn try_to_run(&self, script: &str, keys: &[String], arguments: &[String]) -> mlua::Result<Answer> {
        let globals = self.lua.globals();
        globals.set("KEYS", keys)?;
        globals.set("ARGV", arguments)?;
        let known = self.compiled.borrow().get(script).cloned();
        let function = match known {
            Some(function) => function,
            None => {
                let function = self.lua.load(script).into_function()?;
                let mut compiled = self.compiled.borrow_mut();
                compiled.insert(script.to_owned(), function.clone());
                function
            }
        };
        from_lua(function.call(())?)
    }
}

/// Adds the functions that scripts call.
fn library(lua: &Lua, data: Rc<RefCell<Data>>, is_here: Rc<dyn Fn(&str) -> bool>) -> mlua::Result<()> {
    let run = move |words: MultiValue| -> mlua::Result<Answer> {
        let words: Vec<String> = words.iter().map(word).collect::<mlua::Result<_>>()?;
        let Some((name, arguments)) = words.split_first() else {
            return Err(Error::runtime("ERR no command"));
        };
        if let Some(key) = arguments.first()
            && !is_here(key)
        {
            let error = "ERR Script attempted to access a non local key in a cluster node";
            return Ok(Answer::Error(error.to_owned()));
        }
        Ok(data.borrow_mut().execute(&in_capitals(name), arguments))
    };
    let run = Rc::new(run);
    let caught = run.clone();
    let call = lua.create_function(move |lua, words| match run(words)? {
        Answer::Error(error) => Err(Error::runtime(error)),
        answer => to_lua(lua, answer),
    })?;
    let pcall = lua.create_function(move |lua, words| to_lua(lua, caught(words)?))?;
    let redis = lua.create_table()?;
    redis.set("call", call)?;
    redis.set("pcall", pcall)?;
    redis.set("sha1hex", lua.create_function(|_, text: String| Ok(sha1_hex(&text)))?)?;
    let cjson = lua.create_table()?;
    cjson.set("decode", lua.create_function(decode)?)?;
    lua.globals().set("redis", redis)?;
    lua.globals().set("cjson", cjson)
}

/// Returns the error of a script as the client receives it.
fn words(error: &Error) -> String {
    match error {
        Error::RuntimeError(error) => error.clone(),
        Error::CallbackError { cause, .. } => words(cause),
        error => format!("ERR {error}"),
    }
}

/// Converts an argument of a command to text, with numbers as Redis writes them.
fn word(value: &Value) -> mlua::Result<String> {
    match value {
        Value::Integer(number) => Ok(number.to_string()),
        Value::Number(number) => Ok(number.to_string()),
        Value::String(text) => Ok(text.to_str()?.to_owned()),
        _ => Err(Error::runtime(
            "ERR Lua redis lib command arguments must be strings or integers",
        )),
    }
}

fn to_lua(lua: &Lua, answer: Answer) -> mlua::Result<Value> {
    let table = |field: &str, text: String| -> mlua::Result<Value> {
        let table = lua.create_table()?;
        table.set(field, text)?;
        Ok(Value::Table(table))
    };
    Ok(match answer {
        Answer::Nil => Value::Boolean(false),
        // Lua 5.1 has only one type of numbers.
        Answer::Number(number) => Value::Number(number as f64),
        Answer::Text(text) => Value::String(lua.create_string(text)?),
        Answer::Status(text) => table("ok", text)?,
        Answer::Error(text) => table("err", text)?,
        Answer::Many(answers) => {
            let values: mlua::Result<Vec<Value>> = answers.into_iter().map(|answer| to_lua(lua, answer)).collect();
            Value::Table(lua.create_sequence_from(values?)?)
        }
    })
}

fn from_lua(value: Value) -> mlua::Result<Answer> {
    Ok(match value {
        Value::Nil | Value::Boolean(false) => Answer::Nil,
        Value::Boolean(true) => Answer::Number(1),
        Value::Integer(number) => Answer::Number(number),
        // Redis drops the fraction.
        Value::Number(number) => Answer::Number(number as i64),
        Value::String(text) => Answer::Text(text.to_str()?.to_owned()),
        Value::Table(table) => from_table(&table)?,
        _ => return Err(Error::runtime("ERR a script has answered something else")),
    })
}

fn from_table(table: &Table) -> mlua::Result<Answer> {
    if let Some(error) = table.get::<Option<String>>("err")? {
        return Ok(Answer::Error(error));
    }
    if let Some(status) = table.get::<Option<String>>("ok")? {
        return Ok(Answer::Status(status));
    }
    let values = table.sequence_values::<Value>();
    let answers: mlua::Result<Vec<Answer>> = values.map(|value| from_lua(value?)).collect();
    answers.map(Answer::Many)
}

/// Decodes a JSON array of strings; scripts decode nothing else.
fn decode(lua: &Lua, json: String) -> mlua::Result<Table> {
    let texts: Vec<String> = serde_json::from_str(&json).map_err(Error::external)?;
    lua.create_sequence_from(texts)
}

fn sha1_hex(text: &str) -> String {
    let digest = Sha1::digest(text.as_bytes());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}
