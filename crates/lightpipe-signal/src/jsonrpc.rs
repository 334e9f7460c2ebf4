//! JSON-RPC 2.0 over text messages: requests, notifications, batches and what is answered to each (<https://www.jsonrpc.org/specification>).

use serde_json::{Value, json};

/// Most calls in one batch; each is answered, so a message could otherwise cost us many times its own size.
pub const MAX_BATCH: usize = 100;

/// One call: a request, or a notification, which is never answered.
#[derive(Debug, Clone, PartialEq)]
pub struct Call {
    /// A string, a number or null; absent from notifications.
    pub id: Option<Value>,
    /// Its name.
    pub method: String,
    /// An object or an array; null without any.
    pub params: Value,
}

/// Why a call failed, as the caller is told (§5.1).
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct RpcError {
    /// From -32768 to -32000: the specification's, or one of ours, see [`crate::conference`].
    pub code: i32,
    /// What is wrong, and what would be right.
    pub message: String,
    /// A word for programs, where one code has several causes.
    pub cause: Option<&'static str>,
}

impl RpcError {
    /// Of this code.
    pub fn new(code: i32, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), cause: None }
    }

    /// Bytes that are no JSON.
    pub fn parse(message: impl Into<String>) -> Self {
        Self::new(-32700, message)
    }

    /// JSON that is no call, or a call at the wrong time.
    pub fn invalid_request(message: impl Into<String>) -> Self {
        Self::new(-32600, message)
    }

    /// A method that does not exist.
    pub fn method_not_found(method: &str) -> Self {
        Self::new(-32601, format!("there is no method {:?}", method.chars().take(64).collect::<String>()))
    }

    /// Parameters that the method does not take.
    pub fn invalid_params(message: impl Into<String>) -> Self {
        Self::new(-32602, message)
    }

    /// The same with a cause for programs.
    pub fn because(self, cause: &'static str) -> Self {
        Self { cause: Some(cause), ..self }
    }

    fn to_value(&self) -> Value {
        let mut value = json!({ "code": self.code, "message": self.message });
        if let Some(cause) = self.cause {
            value["data"] = json!({ "cause": cause });
        }
        value
    }
}

/// Whether a first message opens a conversation in JSON-RPC.
pub fn opens(text: &str) -> bool {
    match serde_json::from_str::<Value>(text) {
        Ok(Value::Object(object)) => object.contains_key("jsonrpc"),
        Ok(Value::Array(_)) => true,
        _ => false,
    }
}

/// Gives each call of a message to `handle`, in order, and makes the answer; `None` where none is due.
pub fn answer(text: &str, mut handle: impl FnMut(&Call) -> Result<Value, RpcError>) -> Option<String> {
    let message = match serde_json::from_str::<Value>(text) {
        Ok(message) => message,
        Err(error) => {
            let refused = RpcError::parse(format!("not JSON: {error}"));
            return Some(response(&Value::Null, Err(refused)).to_string());
        }
    };
    let answered = match message {
        Value::Array(calls) if calls.is_empty() => {
            Some(response(&Value::Null, Err(RpcError::invalid_request("an empty batch"))))
        }
        Value::Array(calls) if calls.len() > MAX_BATCH => {
            let refused = format!("a batch of {}, {MAX_BATCH} are allowed", calls.len());
            Some(response(&Value::Null, Err(RpcError::invalid_request(refused))))
        }
        Value::Array(calls) => {
            let answers: Vec<Value> = calls.into_iter().filter_map(|call| one(call, &mut handle)).collect();
            (!answers.is_empty()).then_some(Value::Array(answers))
        }
        call => one(call, &mut handle),
    };
    answered.map(|value| value.to_string())
}

/// A notification of ours.
pub fn notification(method: &str, params: &Value) -> String {
    json!({ "jsonrpc": "2.0", "method": method, "params": params }).to_string()
}

/// A request of ours.
pub fn request(id: u64, method: &str, params: &Value) -> String {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string()
}

/// What a server says to us.
#[derive(Debug, Clone, PartialEq)]
pub enum Heard {
    /// It tells something by itself.
    Notification {
        /// Its name.
        method: String,
        /// An object or an array; null without any.
        params: Value,
    },
    /// It answers a request of ours.
    Answer {
        /// Which one.
        id: u64,
        /// The result, or why there is none.
        result: Result<Value, Refusal>,
    },
}

/// Why the other side refused a call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} ({code})")]
pub struct Refusal {
    /// As in [`RpcError::code`].
    pub code: i32,
    /// For people.
    pub message: String,
    /// A word for programs, where one code has several causes.
    pub cause: Option<String>,
}

/// Reads what a server says; whatever is no JSON-RPC, or an answer to nobody's question, is left out.
pub fn heard(text: &str) -> Vec<Heard> {
    match serde_json::from_str(text) {
        Ok(Value::Array(messages)) => messages.into_iter().take(MAX_BATCH).filter_map(heard_one).collect(),
        Ok(message) => heard_one(message).into_iter().collect(),
        Err(_) => Vec::new(),
    }
}

fn heard_one(mut message: Value) -> Option<Heard> {
    let object = message.as_object_mut()?;
    if let Some(Value::String(method)) = object.remove("method") {
        return Some(Heard::Notification { method, params: object.remove("params").unwrap_or_default() });
    }
    let id = object.get("id")?.as_u64()?;
    let result = match object.remove("error") {
        None => Ok(object.remove("result")?),
        Some(error) => Err(Refusal {
            code: i32::try_from(error.get("code")?.as_i64()?).ok()?,
            message: error.get("message").and_then(Value::as_str).unwrap_or_default().chars().take(256).collect(),
            cause: error.get("data").and_then(|data| data.get("cause")).and_then(Value::as_str).map(str::to_owned),
        }),
    };
    Some(Heard::Answer { id, result })
}

fn one(value: Value, handle: &mut impl FnMut(&Call) -> Result<Value, RpcError>) -> Option<Value> {
    // We ask nothing, so an answer is to somebody else's question; to answer it would begin a quarrel.
    if value.get("method").is_none() && (value.get("result").is_some() || value.get("error").is_some()) {
        return None;
    }
    match call(value) {
        Ok(call) => {
            let result = handle(&call);
            call.id.map(|id| response(&id, result))
        }
        Err((id, error)) => Some(response(&id, Err(error))),
    }
}

fn call(value: Value) -> Result<Call, (Value, RpcError)> {
    let refuse = |id: Value, what: &str| Err((id, RpcError::invalid_request(what)));
    let Value::Object(mut object) = value else { return refuse(Value::Null, "a call is an object") };
    let id = object.remove("id");
    if id.as_ref().is_some_and(|id| !(id.is_string() || id.is_number() || id.is_null())) {
        return refuse(Value::Null, "an id is a string, a number or null");
    }
    let known = id.clone().unwrap_or(Value::Null);
    if object.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
        return refuse(known, "\"jsonrpc\" must be \"2.0\"");
    }
    let Some(Value::String(method)) = object.remove("method") else {
        return refuse(known, "\"method\" must be a string");
    };
    let params = object.remove("params").unwrap_or_default();
    if !(params.is_object() || params.is_array() || params.is_null()) {
        return refuse(known, "\"params\" must be an object or an array");
    }
    Ok(Call { id, method, params })
}

fn response(id: &Value, result: Result<Value, RpcError>) -> Value {
    match result {
        Ok(result) => json!({ "jsonrpc": "2.0", "result": result, "id": id }),
        Err(error) => json!({ "jsonrpc": "2.0", "error": error.to_value(), "id": id }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The methods that the specification's examples call.
    fn examples(call: &Call) -> Result<Value, RpcError> {
        let numbers = |key: &[&str]| -> Option<Vec<i64>> {
            match &call.params {
                Value::Array(list) => list.iter().map(Value::as_i64).collect(),
                Value::Object(named) => key.iter().map(|key| named.get(*key)?.as_i64()).collect(),
                _ => None,
            }
        };
        match call.method.as_str() {
            "subtract" => match numbers(&["minuend", "subtrahend"]).as_deref() {
                Some([a, b]) => Ok(json!(a - b)),
                _ => Err(RpcError::invalid_params("two numbers")),
            },
            "sum" => Ok(json!(numbers(&[]).unwrap_or_default().iter().sum::<i64>())),
            "get_data" => Ok(json!(["hello", 5])),
            "update" | "notify_hello" | "notify_sum" => Ok(Value::Null),
            other => Err(RpcError::method_not_found(other)),
        }
    }

    /// Messages are compared by code: the words are ours.
    fn strip(value: &mut Value) {
        match value {
            Value::Array(list) => list.iter_mut().for_each(strip),
            other => {
                if let Some(error) = other.get_mut("error").and_then(Value::as_object_mut) {
                    error.retain(|key, _| key == "code");
                }
            }
        }
    }

    #[track_caller]
    fn check(said: &str, expected: Option<Value>) {
        let mut got = answer(said, examples).map(|text| serde_json::from_str::<Value>(&text).expect("JSON"));
        got.iter_mut().for_each(strip);
        assert_eq!(got, expected, "{said}");
    }

    #[track_caller]
    fn refused(said: &str, code: i32, id: Value) {
        check(said, Some(json!({ "jsonrpc": "2.0", "error": { "code": code }, "id": id })));
    }

    #[test]
    fn every_example_of_the_specification_is_answered_as_it_says() {
        let ok = |result: Value, id: Value| Some(json!({ "jsonrpc": "2.0", "result": result, "id": id }));
        check(r#"{"jsonrpc":"2.0","method":"subtract","params":[42,23],"id":1}"#, ok(json!(19), json!(1)));
        check(r#"{"jsonrpc":"2.0","method":"subtract","params":[23,42],"id":2}"#, ok(json!(-19), json!(2)));
        let named = r#"{"jsonrpc":"2.0","method":"subtract","params":{"subtrahend":23,"minuend":42},"id":3}"#;
        check(named, ok(json!(19), json!(3)));
        let named = r#"{"jsonrpc":"2.0","method":"subtract","params":{"minuend":42,"subtrahend":23},"id":4}"#;
        check(named, ok(json!(19), json!(4)));
        check(r#"{"jsonrpc":"2.0","method":"update","params":[1,2,3,4,5]}"#, None);
        check(r#"{"jsonrpc":"2.0","method":"foobar"}"#, None);
        refused(r#"{"jsonrpc":"2.0","method":"foobar","id":"1"}"#, -32601, json!("1"));
        refused(r#"{"jsonrpc":"2.0","method":"foobar,"params":"bar","baz]"#, -32700, Value::Null);
        refused(r#"{"jsonrpc":"2.0","method":1,"params":"bar"}"#, -32600, Value::Null);
        refused(
            r#"[{"jsonrpc":"2.0","method":"sum","params":[1,2,4],"id":"1"},{"jsonrpc":"2.0","method"]"#,
            -32700,
            Value::Null,
        );
        refused("[]", -32600, Value::Null);
        let bad = json!({ "jsonrpc": "2.0", "error": { "code": -32600 }, "id": null });
        check("[1]", Some(json!([bad])));
        check("[1,2,3]", Some(json!([bad, bad, bad])));
        let batch = r#"[{"jsonrpc":"2.0","method":"sum","params":[1,2,4],"id":"1"},{"jsonrpc":"2.0","method":"notify_hello","params":[7]},
            {"jsonrpc":"2.0","method":"subtract","params":[42,23],"id":"2"},{"foo":"boo"},
            {"jsonrpc":"2.0","method":"foo.get","params":{"name":"myself"},"id":"5"},{"jsonrpc":"2.0","method":"get_data","id":"9"}]"#;
        check(
            batch,
            Some(json!([
                { "jsonrpc": "2.0", "result": 7, "id": "1" },
                { "jsonrpc": "2.0", "result": 19, "id": "2" },
                bad,
                { "jsonrpc": "2.0", "error": { "code": -32601 }, "id": "5" },
                { "jsonrpc": "2.0", "result": ["hello", 5], "id": "9" },
            ])),
        );
        let silent = r#"[{"jsonrpc":"2.0","method":"notify_sum","params":[1,2,4]},{"jsonrpc":"2.0","method":"notify_hello","params":[7]}]"#;
        check(silent, None);
    }

    #[test]
    fn what_the_specification_only_describes() {
        // A null id is an id, if a discouraged one.
        check(
            r#"{"jsonrpc":"2.0","method":"get_data","id":null}"#,
            Some(json!({ "jsonrpc": "2.0", "result": ["hello", 5], "id": null })),
        );
        check(
            r#"{"jsonrpc":"2.0","method":"get_data","id":1.5}"#,
            Some(json!({ "jsonrpc": "2.0", "result": ["hello", 5], "id": 1.5 })),
        );
        refused(r#"{"jsonrpc":"2.0","method":"get_data","id":[1]}"#, -32600, Value::Null);
        refused(r#"{"jsonrpc":"1.0","method":"get_data","id":1}"#, -32600, json!(1));
        refused(r#"{"method":"get_data","id":"x"}"#, -32600, json!("x"));
        refused(r#"{"jsonrpc":"2.0","method":"get_data","params":7,"id":1}"#, -32600, json!(1));
        refused(r#""subtract""#, -32600, Value::Null);
        check(r#"{"jsonrpc":"2.0","result":19,"id":1}"#, None);
        check(r#"{"jsonrpc":"2.0","error":{"code":-32000,"message":"x"},"id":1}"#, None);
        refused(&format!("[{}]", vec!["1"; MAX_BATCH + 1].join(",")), -32600, Value::Null);
    }

    #[test]
    fn what_a_server_says_is_an_answer_or_news() {
        let news = Heard::Notification { method: "peer.joined".into(), params: json!({ "peer_id": "a" }) };
        assert_eq!(heard(&notification("peer.joined", &json!({ "peer_id": "a" }))), [news]);
        assert_eq!(heard(r#"{"jsonrpc":"2.0","id":7,"result":{}}"#), [Heard::Answer { id: 7, result: Ok(json!({})) }]);
        let refused = RpcError::invalid_params("taken").because("peer_id_taken");
        let refusal = Refusal { code: -32602, message: "taken".into(), cause: Some("peer_id_taken".into()) };
        let text = response(&json!(7), Err(refused)).to_string();
        assert_eq!(heard(&text), [Heard::Answer { id: 7, result: Err(refusal) }]);
        let batch = format!("[{},{text},7]", notification("peer.joined", &json!({ "peer_id": "a" })));
        assert_eq!(heard(&batch).len(), 2);
        for text in ["", "7", "[]", "{}", r#"{"id":"x","result":1}"#, r#"{"id":1,"error":7}"#, r#"{"id":1}"#] {
            assert_eq!(heard(text), [], "{text}");
        }
        let call: Value = serde_json::from_str(&request(3, "peer.list", &Value::Null)).expect("JSON");
        assert_eq!((&call["id"], &call["method"]), (&json!(3), &json!("peer.list")));
    }

    #[test]
    fn a_first_message_tells_its_dialect() {
        for (text, rpc) in [
            (r#"{"jsonrpc":"2.0","method":"peer.announce"}"#, true),
            (r#"[{"jsonrpc":"2.0"}]"#, true),
            (r#"{"type":"offer"}"#, false),
            ("not JSON", false),
            ("\"jsonrpc\"", false),
        ] {
            assert_eq!(opens(text), rpc, "{text}");
        }
    }
}
